"""Where the report can be tested."""

import os

import pytest

from backbones.kernel_report.binary import missing_tools

needs_compiler = pytest.mark.skipif(
    missing_tools() is not None or os.environ.get("TRITON_INTERPRET") == "1",
    reason=missing_tools() or "the interpreter replaces the compiler",
)

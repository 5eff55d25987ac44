"""What tests of the compiled library ask: one small file, and a process that has not loaded it yet."""

import os

import pytest

from backbones.ops import cpu_extension
from tests.testing import lacks_compiler

needs_compiler = pytest.mark.skipif(lacks_compiler() is not None, reason=str(lacks_compiler()))
COMPILER = os.environ.get("CXX") or "c++"


def answer():
    """What the library says to a process that has not loaded it yet."""
    cpu_extension._build.cache_clear()
    return cpu_extension.library().answer()


def reason():
    """Why such a process has none."""
    cpu_extension._build.cache_clear()
    return cpu_extension.refusal("cpu")


def libraries(folder):
    return sorted(folder.glob("*.so"))

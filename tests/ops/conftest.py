"""What tests of operations share as fixtures."""

import tempfile

import pytest

from backbones.ops import cpu_extension
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.selective_scan import DEFOCUS_SCAN


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A folder with an empty cache and a small source, and a process that has neither built nor chosen anything."""
    for folder in ("csrc", "tmp"):
        (tmp_path / folder).mkdir()
    (tmp_path / "csrc" / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(cpu_extension, "SOURCES", tmp_path / "csrc")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("DEFOCUS_CACHE_DIR", str(tmp_path / "cache"))
    for operation in (DEFOCUS_SCAN, CAUSAL_CONV1D):
        monkeypatch.setattr(operation, "_selected", {})
    cpu_extension._build.cache_clear()
    yield tmp_path
    cpu_extension._build.cache_clear()

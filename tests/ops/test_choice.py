"""What each operation runs on when nobody names a backend."""

import sys
import types

import pytest

from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.decay_attention import DECAY_ATTENTION
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.mamba_inner import MAMBA_INNER
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.testing import needs_library

OPERATIONS = (DEFOCUS_SCAN, CAUSAL_CONV1D, MAMBA_INNER, DECAY_ATTENTION, RETENTION, DEFORMABLE_ATTENTION)


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """No choice made yet, none forced, no interpreter of kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for operation in OPERATIONS:
        monkeypatch.delenv(operation.environment, raising=False)
        monkeypatch.setattr(operation, "_selected", {})


def chosen(device):
    return {operation.name: operation.select(device).name for operation in OPERATIONS}


def pretend(monkeypatch, there, *modules):
    """Makes modules importable, or not, to those who try."""
    for name in modules:
        # None in place of a module makes its import fail.
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name) if there else None)


@needs_library
def test_on_a_cpu_with_a_compiler_the_compiled_kernels():
    assert chosen("cpu") == dict(
        defocus_scan="cpu",
        causal_conv1d_silu="cpu",
        mamba_inner="cpu",
        decay_attention="cpu",
        retention="torch",
        deformable_attention="cpu",
    )


def test_on_cuda_the_kernels_of_what_is_installed(monkeypatch):
    pretend(monkeypatch, True, "triton", "mmcv")
    operators = types.ModuleType("mmcv.ops")
    operators.get_compiling_cuda_version = lambda: "12.8"
    monkeypatch.setitem(sys.modules, "mmcv.ops", operators)
    assert chosen("cuda") == dict(
        defocus_scan="triton",
        causal_conv1d_silu="triton",
        mamba_inner="triton",
        decay_attention="triton",
        retention="triton",
        deformable_attention="triton",
    )
    pretend(monkeypatch, False, "triton")
    monkeypatch.setattr(DEFORMABLE_ATTENTION, "_selected", {})
    assert DEFORMABLE_ATTENTION.select("cuda").name == "mmcv"


def test_on_cuda_without_them_pytorch(monkeypatch):
    pretend(monkeypatch, False, "triton", "mmcv.ops")
    assert set(chosen("cuda").values()) == {"torch"}


def test_on_any_other_device_pytorch():
    assert set(chosen("xpu").values()) == {"torch"}

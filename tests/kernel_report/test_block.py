"""A block as a whole: memory counted by hand, and the released way on stand-ins that leave nothing behind."""

import importlib.util
import os

import pytest
import torch

from backbones.kernel_report.block import trace
from backbones.kernel_report.cards import CARDS
from backbones.kernel_report.record import Recorder
from backbones.kernel_report.released import released_way
from backbones.ops import causal_conv1d_silu
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.kernel_report.support import needs_compiler

pytestmark = needs_compiler
H100 = CARDS["sm_90"]
B, L, WIDTH, INNER = 1, 4096, 768, 1536


@pytest.fixture(scope="module")
def traces():
    dtypes = torch.bfloat16, torch.float32
    return {(dtype, way): trace(H100, dtype, way, B, L) for dtype in dtypes for way in (False, True)}


def test_a_block_keeps_at_least_its_sequences(traces):
    for (dtype, released), found in traces.items():
        # u and z, and what enters out_proj; the norm's input is the block's own. Ours makes u behind the convolution
        # and dt again.
        sequences = (5 if released else 3) * B * L * INNER * dtype.itemsize
        assert sequences < found.kept_bytes < found.peak_bytes, (dtype, released)
        assert found.kept_bytes < (8 if released else 2.5) * sequences, (dtype, released)


def test_ours_runs_kernels_of_ours_and_the_released_way_none(traces):
    for (dtype, released), found in traces.items():
        launched = [step.launch for step in found.steps if step.launch]
        assert bool(launched) != released, dtype
        foreign = [step.name for step in found.steps if step.work]
        scans = ["causal_conv1d forward", "mamba_ssm forward", "mamba_ssm backward", "causal_conv1d backward"]
        assert foreign == (scans if released else []), dtype


def test_products_of_a_block(traces):
    # in_proj, x_proj, dt_proj and out_proj; backward has two for each of forward, and ours makes dt again.
    forward = 2 * B * L * (WIDTH * 2 * INNER + INNER * 80 + 48 * INNER + INNER * WIDTH)
    again = 2 * B * L * 48 * INNER
    for (_, released), found in traces.items():
        assert sum(step.flops for step in found.forward) == forward
        assert sum(step.flops for step in found.backward) == 2 * forward + (0 if released else again)


def test_memory_grows_with_the_sequence(traces):
    twice = trace(H100, torch.bfloat16, l=2 * L, b=B)
    once = traces[torch.bfloat16, False]
    assert 1.7 < twice.kept_bytes / once.kept_bytes < 2.1
    assert [step.name for step in twice.steps] == [step.name for step in once.steps]


def test_stand_ins_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv("DEFOCUS_SCAN_BACKEND", "torch")
    known = [dict(operation._selected) for operation in (DEFOCUS_SCAN, CAUSAL_CONV1D)]
    with Recorder(H100).recording() as recorder, released_way(recorder, torch.bfloat16):
        x = torch.empty(1, 5, 8, device="cuda")
        causal_conv1d_silu(x, torch.empty(8, 1, 4, device="cuda"), torch.empty(8, device="cuda"))
        assert [step.name for step in recorder.steps] == ["causal_conv1d forward"]
    assert os.environ["DEFOCUS_SCAN_BACKEND"] == "torch"
    assert importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("mamba_ssm").origin
    assert [operation._selected for operation in (DEFOCUS_SCAN, CAUSAL_CONV1D)] == known

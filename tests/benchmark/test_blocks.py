"""What the block is compared with: like with like."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from backbones.benchmark import blocks, clock
from backbones.benchmark.clock import Row
from backbones.mixers.mamba import MambaArch, MambaBlock
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.dispatch import serves_every_device
from backbones.ops.mamba_inner import MAMBA_INNER
from backbones.ops.selective_scan import DEFOCUS_SCAN
from backbones.ops.selective_scan.naive import naive_defocus_scan

OPTIONS = Namespace(device="cpu", batch=1, length=8, repeats=1)


@pytest.fixture
def released(monkeypatch):
    """mamba-ssm, as far as a CPU has it: the dtypes of what its scan was given are kept."""
    handed = []

    def scan(*arguments, handed=None):
        seen.append((arguments[0].dtype, handed))
        return naive_defocus_scan(*arguments)

    seen = handed
    monkeypatch.setitem(MambaBlock.archs, "base", MambaArch(embed_dims=32, inner_dims=64, depth=1, dt_rank=4))
    monkeypatch.setattr(blocks, "mamba_ssm_defocus_scan", scan)
    monkeypatch.setattr(blocks, "choose_bf16", lambda: (True, ""))
    # This process may have much to look through.
    monkeypatch.setattr(clock.gc, "collect", lambda: None)
    for operation in (DEFOCUS_SCAN, CAUSAL_CONV1D):
        ours = replace(operation.backends["mamba_ssm"], refusal=serves_every_device)
        ours = replace(ours, run=operation.backends["reference"].run)
        monkeypatch.setitem(operation.backends, "mamba_ssm", ours)
        monkeypatch.setattr(operation, "_selected", {})
    inner = replace(MAMBA_INNER.backends["mamba_ssm"], refusal=serves_every_device)
    monkeypatch.setitem(MAMBA_INNER.backends, "mamba_ssm", inner)
    monkeypatch.setattr(MAMBA_INNER, "_selected", {})
    return seen


def test_the_released_scan_is_handed_what_the_released_code_hands_over(released, capsys):
    blocks.block(OPTIONS)
    # A warm-up and a turn, of each: forward, and forward with backward.
    assert released == [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)] * 4
    out = capsys.readouterr().out
    for line in (
        "forward: block fp32 / two products fp32 = ",
        "forward: released way fp32 / block bf16 autocast = ",
        "forward + backward: released way bf16 / block bf16 autocast = ",
        "forward + backward, peak memory: block bf16 autocast / released way fp32 = ",
    ):
        assert f"\n{line}" in out
    # Nothing of it stays.
    assert DEFOCUS_SCAN.backends["mamba_ssm"].run is naive_defocus_scan


def test_each_promise_divides_the_rows_that_it_is_about():
    seconds = {"two products fp32": 1.0, "block fp32": 1.5, "block bf16 autocast": 0.5}
    rows = [Row(name, None, [value], 100) for name, value in seconds.items()]
    assert list(blocks.promises("forward", rows, "cpu", "≤ 1.4")) == [
        "forward: block fp32 / two products fp32 = 1.50 (promised ≤ 1.4)",
        "forward: block bf16 autocast / block fp32 = 0.33 (promised ≤ 0.55)",
    ]
    rows += [Row("released way fp32", None, [2.0], 400), Row("released way bf16", None, [0.8], 300)]
    assert list(blocks.promises("forward", rows, "cuda", "")) == [
        "forward: released way fp32 / block bf16 autocast = 4.00 (promised ≥ 4)",
        "forward: released way bf16 / block bf16 autocast = 1.60 (promised ≥ 1.5)",
        "forward, peak memory: block bf16 autocast / released way fp32 = 0.25 (promised ≤ 0.5)",
    ]


def test_what_is_missing_of_the_released_way_is_said(monkeypatch, capsys):
    blocks._say_what_is_compared("cuda")
    assert capsys.readouterr().out.startswith("The released way is left out: ")
    monkeypatch.setattr(blocks, "released_refusal", lambda device: None)
    blocks._say_what_is_compared("cuda")
    assert "runs its convolution in PyTorch, which is slower than as released: " in capsys.readouterr().out
    blocks._say_what_is_compared("cpu")
    assert capsys.readouterr().out == ""


def test_bf16_is_left_out_where_it_is_slower(monkeypatch, capsys):
    monkeypatch.setitem(MambaBlock.archs, "base", MambaArch(embed_dims=32, inner_dims=64, depth=1, dt_rank=4))
    monkeypatch.setattr(blocks, "choose_bf16", lambda: (False, "It takes twice as long"))
    blocks.block(OPTIONS)
    out = capsys.readouterr().out
    assert out.count("bf16") == 1 and "bf16 is left out. It takes twice as long" in out
    assert "forward + backward: block fp32 / two products fp32 = " in out

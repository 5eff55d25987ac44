"""The benchmark: what its clock and its table count, by a clock of our own, and that each of its commands runs."""

import sys

import pytest
import torch

from backbones.mixers.mamba import MambaArch, MambaBlock
from tests.testing import load_tool

benchmark = load_tool("benchmark")


class Clock:
    """Stands still but for what is run, which takes each of ``seconds`` in its turn."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(benchmark.time, "perf_counter", lambda: self.now)

    def run(self, *seconds):
        turns = iter(seconds)

        def run():
            self.now += next(turns)

        return run


def test_the_first_turn_warms_up_and_the_others_count(monkeypatch):
    clock = Clock(monkeypatch)
    rows = [benchmark.Row("fast", clock.run(100.0, 1.0, 5.0)), benchmark.Row("slow", clock.run(200.0, 4.0, 10.0))]
    benchmark.measure(rows, 2, "cpu")
    assert [row.seconds for row in rows] == [[1.0, 5.0], [4.0, 10.0]]
    assert [row.median for row in rows] == [3.0, 7.0]


def test_peak_memory_is_what_a_run_takes_above_what_was_there():
    def run():
        torch.ones(16 << 20)

    before = torch.ones(64 << 20)
    row = benchmark.Row("64 MiB", run)
    benchmark.measure([row], 1, "cpu")
    assert 60 < row.peak_bytes / 2**20 < 120 and before.numel()


def test_ratios_are_to_the_row_that_is_named():
    rows = [
        benchmark.Row("reference", None, [0.008], 3 * 2**20),
        benchmark.Row("cpu", None, [0.002, 0.001, 0.004], 2**20),
    ]
    assert benchmark.table("Scan", rows, "reference").splitlines() == [
        "Scan",
        "",
        "| | ms | / reference | reference / | peak MiB |",
        "| --- | --- | --- | --- | --- |",
        "| reference | 8.0 | 1.00 | 1.0 | 3 |",
        "| cpu | 2.0 | 0.25 | 4.0 | 1 |",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("block --length 32", ["block fp32", "block bf16 autocast", "block bf16 / fp32: "]),
        ("sweep --lengths 16 32 --plot PLOT", ["L = 16", "L = 32", "PLOT"]),
        ("attention --length 64", ["sdpa causal", "de-focus causal", "one L×L×heads fp32 matrix: 1/"]),
        ("retention --lengths 32 64", ["L = 32", "L = 64"]),
        ("backbone --image-size 32 --families DefocusMamba", ["DefocusMamba base: ", " images/s"]),
        ("adapter --image-size 64", ["SimpleFPN: ", "TapPyramid: ", "InteractionAdapter: "]),
    ],
)
def test_commands(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MambaBlock.archs, "base", MambaArch(embed_dims=192, inner_dims=384, depth=4, dt_rank=4))
    # It takes longer than what is timed here, and this process has much to look through.
    monkeypatch.setattr(benchmark.gc, "collect", lambda: None)
    plot = tmp_path / "sweep.png"
    words = words.replace("PLOT", str(plot)).split()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--repeats", "1", "--device", "cpu"])
    benchmark.main()
    out = capsys.readouterr().out
    for text in said:
        assert text.replace("PLOT", str(plot)) in out
    assert plot.exists() == ("--plot" in words)

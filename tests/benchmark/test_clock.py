"""What the clock and the table count, by a clock of our own."""

import pytest
import torch

from backbones.benchmark import clock
from backbones.benchmark.clock import Row, measure, ratio_line, table


class Clock:
    """Stands still but for what is run, which takes each of ``seconds`` in its turn."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)
        # This process may have much to look through.
        monkeypatch.setattr(clock.gc, "collect", lambda: None)

    def run(self, *seconds):
        turns = iter(seconds)

        def run():
            self.now += next(turns)

        return run


def test_the_first_turn_warms_up_and_the_others_count(monkeypatch):
    now = Clock(monkeypatch)
    rows = [Row("fast", now.run(100.0, 1.0, 5.0)), Row("slow", now.run(200.0, 4.0, 10.0))]
    measure(rows, 2, "cpu")
    assert [row.seconds for row in rows] == [[1.0, 5.0], [4.0, 10.0]]
    assert [row.median for row in rows] == [3.0, 7.0]


def test_no_turn_begins_when_the_time_is_over_but_one_there_is(monkeypatch):
    now = Clock(monkeypatch)
    row = Row("slow", now.run(50.0, 20.0, 30.0, 1.0))
    measure([row], 9, "cpu", seconds=90)
    assert row.seconds == [20.0, 30.0]
    row = Row("slower", now.run(500.0, 20.0))
    measure([row], 9, "cpu", seconds=1)
    assert row.seconds == [20.0]


def test_peak_memory_is_what_a_run_takes_above_what_was_there():
    def run():
        torch.ones(16 << 20)

    before = torch.ones(64 << 20)
    row = Row("64 MiB", run)
    measure([row], 1, "cpu")
    assert 60 < row.peak_bytes / 2**20 < 120 and before.numel()


def test_peak_memory_counts_what_was_freed_and_kept():
    def run():
        # Blocks below glibc's threshold: freed, they stay with the process.
        return [torch.ones(4 << 10) for _ in range(1 << 10)]

    for _ in range(2):
        row = Row("16 MiB", run)
        measure([row], 1, "cpu")
        assert 12 < row.peak_bytes / 2**20 < 40


ROWS = [Row("reference", None, [0.008], 3 * 2**20), Row("cpu", None, [0.002, 0.001, 0.004], 2**20)]


def test_ratios_are_to_the_row_that_is_named():
    assert table("Scan", ROWS, "reference").splitlines() == [
        "Scan",
        "",
        "| | ms | / reference | reference / | peak MiB |",
        "| --- | --- | --- | --- | --- |",
        "| reference | 8.0 | 1.00 | 1.0 | 3 |",
        "| cpu | 2.0 | 0.25 | 4.0 | 1 |",
    ]


def test_the_time_of_a_gpu_stands_beside_that_of_launches():
    rows = [Row("reference", None, [0.008], 2**20, 0.006), Row("ours", None, [0.004], 2**20, 0.0015)]
    assert table("Scan", [*rows, Row("waits", None, [0.016], 2**20)], "reference").splitlines()[2:] == [
        "| | ms | / reference | reference / | GPU ms | peak MiB |",
        "| --- | --- | --- | --- | --- | --- |",
        "| reference | 8.0 | 1.00 | 1.0 | 6.00 | 1 |",
        "| ours | 4.0 | 0.50 | 2.0 | 1.50 | 1 |",
        "| waits | 16.0 | 2.00 | 0.5 | – | 1 |",
    ]
    line = ratio_line("scan", rows, "reference", "ours", "≥ 3")
    assert line == "scan: reference / ours = 2.00, of the GPU's own time 4.00 (promised ≥ 3)"
    assert ratio_line("memory", rows, "reference", "ours", memory=True) == "memory: reference / ours = 1.00"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_what_waits_for_the_gpu_has_no_graph():
    x = torch.ones(1 << 20, device="cuda")
    rows = [Row("add", lambda: x + 1), Row("waits", lambda: x.sum().item())]
    measure(rows, 2, "cuda")
    assert rows[0].graph_seconds > 0 and rows[1].graph_seconds == 0


def test_promised_ratios_are_printed_as_promised():
    assert ratio_line("scan", ROWS, "reference", "cpu", "≥ 3") == "scan: reference / cpu = 4.00 (promised ≥ 3)"
    assert ratio_line("scan", ROWS, "cpu", "reference") == "scan: cpu / reference = 0.25"
    assert ratio_line("memory", ROWS, "reference", "cpu", memory=True) == "memory: reference / cpu = 3.00"


def test_the_machine_says_whether_products_are_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, said in ((True, "TF32 on"), (False, "TF32 off")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert clock.machine("cuda").startswith("A GPU, torch ") and clock.machine("cuda").endswith(said)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

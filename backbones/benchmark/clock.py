"""The clock and the table of the benchmark: everything compared runs in one process, in turns.

A machine that slows down slows all of it; a figure is the median of the turns. Memory is the peak above what was there
before a run.

On a GPU stands beside it what a replay of the run's captured graph takes: the GPU's own time. The first contains what
Python needs to launch the kernels, which small inputs wait for, and which the host decides.
"""

import contextlib
import ctypes
import gc
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class Row:
    """One thing that is timed; ``run`` is called once per turn.

    Attributes:
        name: Shown in the table.
        run: What is timed.
        seconds: Of each turn.
        peak_bytes: The most memory of a turn.
        graph_seconds: Of a replay of its captured graph; 0 where there is none.
    """

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    graph_seconds: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return statistics.median(self.seconds)


def measure(rows: Sequence[Row], repeats: int, device: str, seconds: float = math.inf) -> None:
    """Runs the rows in turns, once to warm up and then for the clock. What is done shows where somebody looks.

    Args:
        rows: What is timed; their figures are filled in.
        repeats: Turns for the clock.
        device: "cpu" or "cuda".
        seconds: No turn but the first begins after so long.
    """
    begin = time.perf_counter()
    for turn in range(repeats + 1):
        if turn > 1 and time.perf_counter() - begin > seconds:
            break
        for row in rows:
            gc.collect()
            if not turn:
                _give_back_memory()
            before = _reset_peak(device)
            start = time.perf_counter()
            row.run()
            _synchronise(device)
            elapsed = time.perf_counter() - start
            row.peak_bytes = max(row.peak_bytes, _peak(device) - before)
            if turn:
                row.seconds.append(elapsed)
            _show(f"\r  {turn}/{repeats} {row.name:<40}")
    if device == "cuda":
        for row in rows:
            _show(f"\r  as a graph {row.name:<40}")
            row.graph_seconds = _replay(row.run, len(row.seconds))
    _show("\r" + " " * 60 + "\r")


def _replay(run: Callable[[], object], repeats: int) -> float:
    """Seconds of a replay of what ``run`` launches, the mean of ``repeats``; 0 if it waits for the GPU in between."""
    graph = torch.cuda.CUDAGraph()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return 0.0
    graph.replay()
    begin.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def _show(text: str) -> None:
    """Writes to standard error where that is a terminal: a line that comes back to its beginning is none in a file."""
    if sys.stderr.isatty():
        print(text, end="", flush=True, file=sys.stderr)


def _give_back_memory() -> None:
    """Returns to the system what the process has freed and still holds: using it again would count as no memory."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status(key: str) -> int:
    """A memory figure of this process in bytes, from Linux; 0 elsewhere."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None, f"/proc/self/status has no {key}"
        return int(found[1]) * 1024
    return 0


def _reset_peak(device: str) -> int:
    """Starts a new peak; returns what is in use."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def table(title: str, rows: Sequence[Row], against: str) -> str:
    """Markdown: time, ratio to the row called ``against``, peak memory; the GPU's own time where it was taken."""
    base = next(row.median for row in rows if row.name == against)
    graphs = any(row.graph_seconds for row in rows)
    head = ["", "ms", f"/ {against}", f"{against} /", *["GPU ms"] * graphs, "peak MiB"]
    lines = [f"{title}\n", f"| {' | '.join(head)} |".replace("|  |", "| |"), "| --- " * len(head) + "|"]
    for row in rows:
        ratio = row.median / base
        graph = [f"{row.graph_seconds * 1e3:.2f}" if row.graph_seconds else "–"] * graphs
        cells = [row.name, f"{row.median * 1e3:.1f}", f"{ratio:.2f}", f"{1 / ratio:.1f}", *graph]
        lines.append(f"| {' | '.join(cells)} | {row.peak_bytes / 2**20:.0f} |")
    return "\n".join(lines)


def ratio_line(what: str, rows: Sequence[Row], over: str, under: str, promised: str = "", memory: bool = False) -> str:
    """One promised figure: the time, or with ``memory`` the peak, of row ``over`` divided by that of row ``under``.

    Where the GPU's own time was taken of both, its ratio follows.

    Args:
        what: Begins the line.
        rows: Measured rows.
        over: Name of the row above the line of the fraction.
        under: Name of the one below.
        promised: What it should be, shown in brackets; nothing where nothing is promised.
        memory: Whether peaks are divided rather than times.
    """
    by_name = {row.name: row for row in rows}
    above, below = by_name[over], by_name[under]
    value = above.peak_bytes / max(below.peak_bytes, 1) if memory else above.median / max(below.median, 1e-12)
    line = f"{what}: {over} / {under} = {value:.2f}"
    if above.graph_seconds and below.graph_seconds and not memory:
        line += f", of the GPU's own time {above.graph_seconds / below.graph_seconds:.2f}"
    return f"{line} (promised {promised})" if promised else line


def machine(device: str) -> str:
    """What runs this, in words, and whether fp32 products may be rounded to TF32."""
    if device == "cuda":
        tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, TF32 {tf32}"
    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()):
            return name[1]
    return platform.processor() or platform.machine()


def with_backward(function: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """``function`` and the gradients of its sum by ``leaves``."""

    def run():
        out = function()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run

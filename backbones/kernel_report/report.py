"""Everything that is said of the kernels on one architecture, as plain data."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from backbones.kernel_report import calls
from backbones.kernel_report.block import Trace, trace
from backbones.kernel_report.cards import CARDS, Card
from backbones.kernel_report.estimate import seconds
from backbones.kernel_report.measure import Measured, measure_all
from backbones.kernel_report.record import Launch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BATCHES = (1, 2, 8)
LENGTHS = (1024, 4705, 16384, 65536)
_BATCH = 2
Progress = Callable[[str], None]


def report(
    architecture: str,
    dtypes: Sequence[str] = tuple(DTYPES),
    pattern: str = "",
    with_block: bool = True,
    with_sizes: bool = True,
    with_extremes: bool = True,
    workers: int = 1,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Compiles and counts what the operations launch at the published sizes.

    Args:
        architecture: A key of `cards.CARDS`.
        dtypes: Keys of `DTYPES`.
        pattern: Only kernels whose name has this in it.
        with_block: Whether a Mamba block is followed, too, ours in ``dtypes`` and the released way.
        with_sizes: Whether programs are counted at other sizes, too.
        with_extremes: Whether the sizes of `calls.EXTREMES` are compiled, too.
        workers: Processes that compile.
        progress: Told in words what is done.

    Returns:
        ``card``, ``left_out`` (operations without Triton kernels), ``kernels``, and as asked ``programs``, ``block``
        and ``extremes``, with ``refused``, what an operation said that takes no such size; bytes, seconds, counts.
    """
    card = CARDS[architecture]
    served = [call for call in calls.CALLS if calls.has_kernels(call)]
    recorded, _ = _record(served, card, dtypes, pattern, progress)
    extremes, refused = _record(calls.EXTREMES if with_extremes else (), card, dtypes, pattern, progress)
    traces = []
    if with_block:
        traces = [trace(card, DTYPES[dtype]) for dtype in dtypes]
        traces += [trace(card, dtype, released=True) for dtype in DTYPES.values()]
    launches = [step.launch for *_, steps in recorded + extremes for step in steps]
    launches += [step.launch for found in traces for step in found.steps if step.launch]
    measured = measure_all(
        launches,
        card,
        workers,
        lambda done, of, name: progress(f"{architecture}: {done} of {of} compiled, {name}"),
    )
    found = {
        "card": card.gpu.name,
        "architecture": architecture,
        "multiprocessors": card.gpu.multiprocessors,
        "left_out": [call.name for call in calls.CALLS if not calls.has_kernels(call)],
        "kernels": _kernels(card, measured, recorded),
    }
    if with_sizes:
        shown = [call for call in served if any(row["operation"] == call.name for row in found["kernels"])]
        found["programs"] = _programs(card, shown, dtypes[0], pattern)
    if with_extremes:
        found["extremes"], found["refused"] = _kernels(card, measured, extremes), refused
    if with_block:
        found["block"] = [_block(card, measured, each) for each in traces]
    return found


def _record(chosen: Sequence[calls.Call], card: Card, dtypes: Sequence[str], pattern: str, progress: Progress):
    """Name, dtype, elements and kernels of each call, and why others refuse."""
    recorded, refused = [], {}
    for dtype in dtypes:
        for call in chosen:
            progress(f"{call.name}, {dtype}, on {card.gpu.name}")
            try:
                steps, elements = calls.record(call, card, _BATCH, calls.PUBLISHED_LENGTH, DTYPES[dtype])
            except ValueError as error:
                refused[call.name] = str(error)
                continue
            recorded.append((call.name, dtype, elements, [s for s in steps if s.launch and pattern in s.launch.name]))
    return recorded, refused


def _kernels(card: Card, measured: dict[str, Measured], recorded: list[tuple]) -> list[dict[str, Any]]:
    """A row for each launch that differs from those before."""
    steps = [(call, dtype, elements, step) for call, dtype, elements, each in recorded for step in each]
    labels = _labels([step.launch for *_, step in steps])
    rows: dict[str, dict[str, Any]] = {}
    for (call, dtype, elements, step), name in zip(steps, labels):
        if step.launch.key in rows:
            continue
        binary, cost = measured[step.launch.key].binary, measured[step.launch.key].cost
        rows[step.launch.key] = {
            "kernel": name,
            "operation": call,
            "dtype": dtype,
            "registers": binary.registers,
            "spill_bytes": binary.spill_bytes,
            "stack_bytes": binary.stack_bytes,
            "shared_bytes": binary.shared_bytes,
            "warps": binary.warps,
            "resident_warps": card.resident_warps(binary.registers, binary.shared_bytes, binary.warps),
            "programs": step.launch.programs,
            "instructions": cost.static_instructions,
            "loops": [{"rounds": x.rounds, "instructions": x.instructions, "cycles": x.cycles} for x in cost.loops],
            "guessed_loops": cost.guessed,
            "thread_instructions_an_element": 32 * cost.instructions / elements,
            "exponentials_an_element": cost.exponentials / elements,
            "bytes_an_element": step.bytes / elements,
            "bytes": step.bytes,
            "seconds_at_least": seconds([step], card, measured, simulated=False),
            "seconds_about": seconds([step], card, measured, simulated=True),
        }
    return list(rows.values())


def _labels(launches: Sequence[Launch]) -> list[str]:
    """Names, with the constants that tell two versions of a kernel apart."""
    versions: dict[str, list] = defaultdict(list)
    for launch in launches:
        if launch.constants not in versions[launch.name]:
            versions[launch.name].append(launch.constants)
    labels = []
    for launch in launches:
        differing = [
            f"{list(launch.signature)[at[0]]}={value}"
            for at, value in launch.constants.items()
            if any(other.get(at) != value for other in versions[launch.name])
        ]
        labels.append(launch.name + (f" ({', '.join(differing)})" if differing else ""))
    return labels


def _programs(card: Card, served: list[calls.Call], dtype: str, pattern: str) -> list[dict[str, Any]]:
    """Programs of each kernel at other sizes."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for b in BATCHES:
        for l in LENGTHS:
            steps = [step for call in served for step in calls.record(call, card, b, l, DTYPES[dtype])[0]]
            launches = [step.launch for step in steps if step.launch and pattern in step.launch.name]
            for name, launch in zip(_labels(launches), launches):
                rows[name][f"{b}x{l}"] = launch.programs
    return [{"kernel": name, "programs": sizes} for name, sizes in rows.items()]


def _block(card: Card, measured: dict[str, Measured], found: Trace) -> dict[str, Any]:
    return {
        "name": found.name,
        "launches_forward": len(found.forward),
        "launches_backward": len(found.backward),
        "moved_bytes": found.moved_bytes,
        "kept_bytes": found.kept_bytes,
        "peak_bytes": found.peak_bytes,
        "seconds_at_least": seconds(found.steps, card, measured, simulated=False),
        "seconds_about": seconds(found.steps, card, measured, simulated=True),
        "seconds_products": seconds([s for s in found.steps if s.flops], card, measured, simulated=True),
        "steps": [step.name for step in found.steps],
    }

"""What one launch costs, counted in the compiled code."""

import contextlib
import itertools
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from backbones.kernel_report import ptx, sass
from backbones.kernel_report.binary import Binary, compile_launch
from backbones.kernel_report.cards import SCHEDULERS, Card
from backbones.kernel_report.record import Launch

# Programs whose loops are followed; a prime number, so that each axis of the grid is covered evenly.
_SAMPLES = 7
# A loop of the machine code is one of the PTX if their counts of instructions differ by less.
_LIKENESS = 0.35
# Rounds of a loop that are simulated.
_ROUNDS = 6


@dataclass(frozen=True)
class LoopCost:
    """A loop of the machine code.

    Attributes:
        rounds: How often a program goes round, in steps of the source's loop.
        instructions: Of one warp, a step.
        cycles: Of a scheduler for a step of all its warps.
    """

    rounds: float
    instructions: float
    cycles: float


@dataclass(frozen=True)
class Cost:
    """What a launch asks of a card.

    Attributes:
        instructions: Of all warps.
        exponentials: Of all threads.
        flops: Of tensor cores.
        unit_cycles: For which all warps together keep each of `sass.UNITS` of a scheduler busy.
        cycles: From the start of the launch to its end, simulated: programs one after another, as many at once as fit.
        loops: The innermost loops, in order.
        static_instructions: Of the kernel as it stands.
        guessed: Loops whose number of rounds depends on data or could not be found, and is taken for 1.
    """

    instructions: float
    exponentials: float
    flops: float
    unit_cycles: dict[str, float]
    cycles: float
    loops: tuple[LoopCost, ...]
    static_instructions: int
    guessed: int


@dataclass(frozen=True)
class Measured:
    """A launch, compiled and counted.

    Attributes:
        binary: What it compiles to.
        cost: What it asks of the card.
    """

    binary: Binary
    cost: Cost


def measure(launch: Launch, card: Card) -> Measured:
    """Compiles a launch for a card and counts what it does.

    Raises:
        RuntimeError: The kernel does not compile, or a program of it does not end.
    """
    binary = compile_launch(launch, card.gpu.capability)
    return Measured(binary, cost(binary, launch, card))


def measure_all(
    launches: Sequence[Launch], card: Card, workers: int, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Measured]:
    """`measure` of each distinct launch, by its key, in processes of their own if ``workers`` are more than one.

    Args:
        launches: Whatever was recorded.
        card: What they are compiled for.
        workers: Number of processes.
        progress: Told how many of how many are done, and the name of the last one.
    """
    distinct = {launch.key: launch for launch in launches}
    found = {}
    pool = None if workers < 2 else ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with pool or contextlib.nullcontext():
        results = (pool.map if pool else map)(measure, distinct.values(), itertools.repeat(card))
        for (key, launch), result in zip(distinct.items(), results):
            found[key] = result
            if progress:
                progress(len(found), len(distinct), launch.name)
    return found


def cost(binary: Binary, launch: Launch, card: Card) -> Cost:
    """Counts what a launch does, from its machine code and the number of rounds that its loops make."""
    blocks = ptx.parse(binary.ptx)
    visits, on_data = _mean_visits(blocks, launch)
    code = sass.parse(binary.sass)
    found = sass.loops(code)
    rounds, guessed = _rounds(found, blocks, visits, on_data)
    parts = [(sass.outside(code, found), 1.0), *((loop.own, n) for loop, (n, _) in zip(found, rounds))]
    warps = launch.programs * binary.warps
    schedulers = card.gpu.multiprocessors * SCHEDULERS
    resident = card.resident_warps(binary.registers, binary.shared_bytes, binary.warps)
    # Of a scheduler: as many as fit, if there are as many. The launch ends with the scheduler that has most to do.
    fitting, there = max(1.0, resident / SCHEDULERS), warps / schedulers
    together, waves = math.ceil(min(fitting, there)), math.ceil(there / fitting)
    kinds = [(sass.kinds(part), n) for part, n in parts]
    busy = [(sass.busy(part), n) for part, n in parts]
    innermost = [
        (loop, n, unrolled)
        for loop, (n, unrolled) in zip(found, rounds)
        if not any(x is not loop and loop.first <= x.first and x.last <= loop.last for x in found)
    ]
    return Cost(
        instructions=warps * sum(k["all"] * n for k, n in kinds),
        exponentials=warps * 32 * sum(block.kinds["exp2"] * n for block, n in zip(blocks, visits)),
        flops=warps * sum(block.mma * n for block, n in zip(blocks, visits)),
        unit_cycles={name: warps * sum(b[name] * n for b, n in busy) for name in sass.UNITS},
        cycles=waves
        * sum(n * sass.cycles(part, together, rounds=_ROUNDS if i else 1) for i, (part, n) in enumerate(parts)),
        loops=tuple(
            LoopCost(n * unrolled, len(loop.own) / unrolled, sass.cycles(loop.own, together, _ROUNDS) / unrolled)
            for loop, n, unrolled in innermost
        ),
        static_instructions=len(code),
        guessed=guessed,
    )


def _mean_visits(blocks: Sequence[ptx.Block], launch: Launch) -> tuple[list[float], set[int]]:
    values = {f"param_{i}": value for i, value in enumerate(launch.values.values())}
    # Spread along each axis by itself, in another order on each: what a program does may depend on any of them.
    places = [[(a * i + a // 2) % _SAMPLES for i in range(_SAMPLES)] for a in (1, 2, 3)]
    chosen = {
        tuple((2 * place + 1) * size // (2 * _SAMPLES) for place, size in zip(each, launch.grid))
        for each in zip(*places)
    }
    return ptx.counts(blocks, values, sorted(chosen), launch.grid)


def _rounds(found, blocks, visits, on_data):
    """Of each loop of the machine code: how often it is gone round, and how many steps of the source that is."""
    spans = ptx.loops(blocks)
    candidates = []
    for first, last in spans:
        inner = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        own = [i for i in range(first, last + 1) if not any(a <= i <= b for a, b in inner)]
        counted = sum((blocks[i].kinds for i in own), start=type(blocks[0].kinds)())
        heaviest = max(own, key=lambda i: blocks[i].kinds["all"])
        candidates.append((counted, visits[heaviest], not on_data.isdisjoint(own)))
    matches: list[tuple[int, int] | None] = []
    position = 0
    for loop in found:
        kinds = sass.kinds(loop.own)
        options = [
            (_difference(kinds, counted, copies), -copies, i, copies)
            for i, (counted, *_) in enumerate(candidates)
            if i >= position
            for copies in (1, 2, 3, 4, 8)
        ]
        best = min(options, default=None)
        if best is None or best[0] > _LIKENESS:
            matches.append(None)
            continue
        matches.append((best[2], best[3]))
        position = best[2]
    # A loop may stand there twice, unrolled and for what is left over.
    copies_of = {i: sum(m[1] for m in matches if m and m[0] == i) for i in range(len(candidates))}
    rounds = [(candidates[m[0]][1] / copies_of[m[0]], m[1]) if m else (1.0, 1) for m in matches]
    return rounds, sum(m is None or candidates[m[0]][2] for m in matches)


def _difference(machine, virtual, copies):
    kinds = [kind for kind in sass.KINDS if machine[kind] or virtual[kind]]
    if not kinds:
        # Nothing to tell them by but their length.
        return abs(machine["all"] - copies * virtual["all"]) / (machine["all"] + copies * virtual["all"])
    off = sum(abs(machine[kind] - copies * virtual[kind]) for kind in kinds)
    return off / sum(machine[kind] + copies * virtual[kind] for kind in kinds)

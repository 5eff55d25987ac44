"""The machine code of a kernel: its instructions, its loops, and how long warps take for them.

Each instruction carries what the hardware goes by: cycles until the next one may start, and which of six counters it
waits for or holds until its result is there (128 bits an instruction, the same since sm_70).
"""

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# As in `ptx.KINDS`.
KINDS = {
    "load": re.compile(r"LDG"),
    "store": re.compile(r"STG|RED|ATOMG"),
    "exp2": re.compile(r"MUFU\.EX2"),
    "shuffle": re.compile(r"SHFL"),
    "product": re.compile(r"HMMA|HGMMA|UTC\w*MMA"),
}
# Cycles until a result is there, of instructions that tell by a counter; the rest is given in their own cycles.
_LATENCY = {"LDG": 500, "LDS": 33, "LDSM": 33, "SHFL": 30, "MUFU": 40, "LDL": 60, "LDC": 40, "BAR": 40, "HGMMA": 128}
_OTHER_LATENCY = 20
# Cycles until a store has read its registers.
_READ = 12
# Cycles of work that a unit takes on beforehand.
_QUEUE = 16
# Cycles for which an instruction of a warp keeps a unit of a scheduler busy.
UNITS = {
    "special functions": (re.compile(r"MUFU|F2F|F2I|I2F"), 8),
    "memory instructions": (re.compile(r"LD[GSL]|LDSM|LDGSTS|ST[GSL]|SHFL|RED|ATOM"), 4),
}
_LINE = re.compile(r"/\*([\da-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);\s*/\*\s*0x([\da-f]{16})")
_SECOND = re.compile(r"^\s*/\*\s*0x([\da-f]{16})")


@dataclass(frozen=True)
class Instruction:
    """One of a warp's.

    Attributes:
        address: Where it stands.
        operation: Its name with suffixes.
        target: Where it branches to, or None.
        stall: Cycles until the next one.
        writes: Counter that is held until the result is there, or None.
        reads: Counter that is held until the operands are read, or None.
        waits: Counters that have to be free before.
    """

    address: int
    operation: str
    target: int | None
    stall: int
    writes: int | None
    reads: int | None
    waits: tuple[int, ...]


@dataclass(frozen=True)
class Loop:
    """Instructions from the head of a loop to its branch back.

    Attributes:
        first: Number of the first one.
        last: Number of the last one.
        own: Instructions of no loop inside it.
    """

    first: int
    last: int
    own: tuple[Instruction, ...]


def parse(text: str) -> list[Instruction]:
    """The instructions of the one kernel in what ``cuobjdump -sass`` printed, without the padding behind its end."""
    code = []
    lines = text.splitlines()
    for line, following in itertools.pairwise(lines):
        found = _LINE.search(line)
        if not found:
            continue
        address, operation, operands, _ = found.groups()
        second = _SECOND.match(following)
        assert second is not None, following
        control = int(second[1], 16)
        target = re.search(r"0x([\da-f]+)\s*$", operands) if operation.startswith("BRA") else None
        counter = (control >> 46) & 7, (control >> 49) & 7
        code.append(
            Instruction(
                int(address, 16),
                operation,
                int(target[1], 16) if target else None,
                stall=(control >> 41) & 15,
                writes=None if counter[0] == 7 else counter[0],
                reads=None if counter[1] == 7 else counter[1],
                waits=tuple(i for i in range(6) if control >> (52 + i) & 1),
            )
        )
    # Behind the end stand a branch to itself and nothing.
    end = next((i for i, x in enumerate(code) if x.target == x.address), len(code))
    return [x for x in code[:end] if x.operation != "NOP"]


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """The loops, outer ones first."""
    at = {x.address: i for i, x in enumerate(code)}
    ends: dict[int, int] = {}
    for i, x in enumerate(code):
        if x.target is not None and x.target < x.address and x.target in at:
            ends[at[x.target]] = i
    spans = sorted(ends.items(), key=lambda span: (span[0], -span[1]))
    found = []
    for first, last in spans:
        inner = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        own = tuple(code[i] for i in range(first, last + 1) if not any(a <= i <= b for a, b in inner))
        found.append(Loop(first, last, own))
    return found


def outside(code: Sequence[Instruction], found: Sequence[Loop]) -> tuple[Instruction, ...]:
    """The instructions of no loop."""
    return tuple(x for i, x in enumerate(code) if not any(loop.first <= i <= loop.last for loop in found))


def kinds(code: Sequence[Instruction]) -> Counter:
    """How many there are of each of `KINDS`, and of all."""
    counted = Counter(all=len(code))
    for x in code:
        for kind, pattern in KINDS.items():
            counted[kind] += bool(pattern.match(x.operation))
    return counted


def busy(code: Sequence[Instruction]) -> dict[str, int]:
    """Cycles for which each of `UNITS` is taken by a warp."""
    return {name: cycles * sum(bool(p.match(x.operation)) for x in code) for name, (p, cycles) in UNITS.items()}


def cycles(code: Sequence[Instruction], warps: int = 1, rounds: int = 1) -> float:
    """Cycles that a scheduler takes for ``code`` of all of ``warps``, simulated in order.

    The warp that could go on first goes on first. Each waits for its own counters, all share the units.

    Args:
        code: What each warp runs.
        warps: Warps of the scheduler.
        rounds: More than 1 for a loop: cycles are then those of one round among many.
    """
    if not code:
        return 0.0
    steps = [_costs(x) for x in code]
    counters = [[0] * 6 for _ in range(warps)]
    units = [0] * len(UNITS)
    ready = [(0, warp, 0) for warp in range(warps)]
    free, ends = 0, []
    while ready:
        at, warp, done = heapq.heappop(ready)
        stall, writes, latency, reads, uses, _ = steps[done % len(code)]
        issued = max(at, free)
        accepted = max((units[unit] - _QUEUE for unit, _ in uses), default=0)
        if accepted > issued:
            # Another warp may go on meanwhile.
            heapq.heappush(ready, (accepted, warp, done))
            continue
        free = begun = issued + 1
        for unit, taken in uses:
            begun = max(issued, units[unit])
            units[unit] = begun + taken
        counter = counters[warp]
        if writes is not None:
            counter[writes] = max(counter[writes], begun + latency)
        if reads is not None:
            counter[reads] = max(counter[reads], begun + _READ)
        done += 1
        if done % len(code) == 0:
            ends.append(issued + stall)
        if done < rounds * len(code):
            held = [counter[i] for i in steps[done % len(code)][5]]
            heapq.heappush(ready, (max(issued + stall, *held, 0), warp, done))
    if rounds == 1:
        return max(ends)
    # The first round fills the pipes, in the last ones some warps are through.
    ends.sort()
    return (ends[-warps - 1] - ends[warps - 1]) / (len(ends) - 2 * warps) * warps if rounds > 2 else ends[-1] - ends[0]


def _costs(x: Instruction) -> tuple:
    uses = [(i, taken) for i, (pattern, taken) in enumerate(UNITS.values()) if pattern.match(x.operation)]
    latency = _LATENCY.get(x.operation.split(".")[0], _OTHER_LATENCY)
    return max(x.stall, 1), x.writes, latency, x.reads, uses, x.waits

"""How often a kernel's code is run: its PTX followed for one thread, as far as numbers of loops depend on it.

Only what decides a branch is computed. Pointers, sizes and program numbers are known, so loops over tokens are; what is
read from memory is not. A branch that depends on it is taken if it leads onwards, past what is rarely needed, and is
not if it leads back.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Kinds of instructions that ptxas neither adds nor removes, so that loops can be told by them.
KINDS = {
    "load": re.compile(r"ld\.global|cp\.async\.c"),
    "store": re.compile(r"st\.global|red\.global|atom\.global"),
    "exp2": re.compile(r"ex2\."),
    "shuffle": re.compile(r"shfl\."),
    "product": re.compile(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"),
}
# Blocks that are gone through for one program before it is given up.
_MOST_BLOCKS = 3_000_000
_INSTRUCTION = re.compile(r"^(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;")
_REGISTER = re.compile(r"%[\w.]+")
_COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_COMPARISONS |= {"lo": _COMPARISONS["lt"], "ls": _COMPARISONS["le"], "hi": _COMPARISONS["gt"], "hs": _COMPARISONS["ge"]}


@dataclass
class Block:
    """Instructions that are run one after another.

    Attributes:
        label: Where branches to it point, or None.
        code: ``(predicate or None, negated, operation, operands)``.
        kinds: How many instructions of each of `KINDS` are there, and of all.
        mma: Operations of its matrix products, by one warp; those in TF32 count twice.
    """

    label: str | None
    code: list[tuple[str | None, bool, str, list[str]]] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)
    mma: int = 0


def parse(text: str) -> list[Block]:
    """The blocks of the one kernel in ``text``, in order."""
    blocks = [Block(None)]
    body = text[text.index("{", text.index(".entry")) :].partition("$L__func_end")[0]
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if line.startswith("$L__BB"):
            blocks.append(Block(line.partition(":")[0]))
            continue
        # Inline assembly stands in braces, several instructions a line.
        for part in re.findall(r"[^;]*;", line.lstrip("{").strip()):
            found = _INSTRUCTION.match(part.strip())
            if not found or part.strip().startswith("."):
                continue
            negated, predicate, operation, operands = found.groups()
            if operation.startswith("bra") and not operands.startswith("$"):
                # Within inline assembly: it waits for what is under way, which is taken to be there.
                continue
            block = blocks[-1]
            block.code.append((predicate, bool(negated), operation, _operands(operands)))
            block.kinds["all"] += 1
            for kind, pattern in KINDS.items():
                block.kinds[kind] += bool(pattern.match(operation))
            block.mma += _product(operation)
            if operation.startswith(("bra", "ret", "exit")):
                blocks.append(Block(None))
    return [block for block in blocks if block.code or block.label]


def _operands(text: str) -> list[str]:
    return [x.strip() for x in re.sub(r"[{}]", "", text).split(",")]


def _product(operation: str) -> int:
    # Warpgroups of four warps share a wgmma.
    found = re.search(r"mma.*?\.m(\d+)n(\d+)k(\d+)", operation)
    if not found:
        return 0
    m, n, k = map(int, found.groups())
    # Two products of 16 bits in the time of one in TF32.
    return 2 * m * n * k * (2 if "tf32" in operation else 1) // (4 if operation.startswith("wgmma") else 1)


def loops(blocks: list[Block]) -> list[tuple[int, int]]:
    """First and last block of each loop, outer ones first."""
    at = {block.label: i for i, block in enumerate(blocks) if block.label}
    ends: dict[int, int] = {}
    for i, block in enumerate(blocks):
        for _, _, operation, operands in block.code:
            if operation.startswith("bra") and at.get(operands[-1], i + 1) <= i:
                ends[at[operands[-1]]] = i
    return sorted(ends.items(), key=lambda loop: (loop[0], -loop[1]))


def counts(
    blocks: Sequence[Block],
    values: Mapping[str, int | float],
    programs: Sequence[tuple[int, ...]],
    grid: tuple[int, ...],
) -> tuple[list[float], set[int]]:
    """How often a thread goes through each block, in the mean of some programs, and which ones would lead back on data.

    Args:
        blocks: Of the kernel.
        values: What its parameters were given, by position as `param_0`, ....
        programs: Their numbers along three axes.
        grid: Programs along three axes.

    Raises:
        RuntimeError: A program does not end.
    """
    code = _decisive(blocks)
    at = {block.label: i for i, block in enumerate(blocks) if block.label}
    known = {f"%nctaid.{axis}": number for axis, number in zip("xyz", grid)}
    known |= {"%tid.x": 0, "%laneid": 0, "%warpid": 0}
    on_data: set[int] = set()
    runs = [
        _visits(code, at, values, on_data, known | {f"%ctaid.{axis}": number for axis, number in zip("xyz", program)})
        for program in programs
    ]
    return [sum(column) / len(runs) for column in zip(*runs)], on_data


def _visits(code, at, values, on_data, known):
    visits = [0] * len(code)
    i, total = 0, 0
    while i < len(code):
        visits[i] += 1
        total += 1
        if total > _MOST_BLOCKS:
            raise RuntimeError(f"a program still runs after {total} blocks of its PTX")
        after = i + 1
        for predicate, negated, operation, operands in code[i]:
            if operation.startswith("bra"):
                target = at[operands[-1]]
                condition = True if predicate is None else known.get(predicate)
                # Onwards if nobody knows: what is then left out is seldom needed.
                taken = target > i if condition is None else condition != negated
                if condition is None and not taken:
                    on_data.add(i)
                if taken:
                    after = target
            elif operation.startswith(("ret", "exit")):
                if predicate is None:
                    return visits
            else:
                _step(known, values, predicate, negated, operation, operands)
        i = after
    return visits


def _decisive(blocks: Sequence[Block]) -> list[list[tuple]]:
    """The instructions that decide a branch, directly or not, and the branches."""
    writers: dict[str, list[tuple]] = {}
    for block in blocks:
        for instruction in block.code:
            _, _, operation, operands = instruction
            for register in _written(operation, operands):
                writers.setdefault(register, []).append(instruction)
    wanted = [p for block in blocks for p, _, operation, _ in block.code if p and operation.startswith("bra")]
    needed: set[str] = set()
    while wanted:
        register = wanted.pop()
        if register in needed:
            continue
        needed.add(register)
        for predicate, _, _, operands in writers.get(register, []):
            wanted += [predicate] if predicate else []
            wanted += [r for operand in operands[1:] for r in _REGISTER.findall(operand)]
    return [
        [x for x in block.code if x[2].startswith(("bra", "ret", "exit")) or needed.intersection(_written(*x[2:]))]
        for block in blocks
    ]


def _written(operation: str, operands: list[str]) -> list[str]:
    if operation.startswith(("bra", "ret", "exit", "st.", "red.", "bar.")):
        return []
    return operands[:-1] if operation.startswith("ld.") else operands[0].split("|")


def _step(known, values, predicate, negated, operation, operands):
    targets = _written(operation, operands)
    value = None
    if predicate is None or known.get(predicate) is not None:
        if predicate is not None and known[predicate] == negated:
            return
        value = _value(known, values, operation, operands) if len(targets) == 1 else None
    for target in targets:
        known[target] = value


def _value(known, values, operation, operands):
    name, *suffixes = operation.split(".")
    kind = suffixes[-1] if suffixes else ""
    if name == "ld":
        found = re.search(r"param_(\d+)", operands[1]) if "param" in suffixes else None
        value = values.get(f"param_{found[1]}") if found else None
        return _wrap(value, kind) if isinstance(value, int) else None
    if any(x.startswith(("f", "bf")) for x in suffixes) or (name == "mov" and len(operands) > 2):
        return None
    inputs = [_read(known, operand, kind) for operand in operands[1:]]
    if name == "mad" and suffixes[0] == "wide":
        inputs[2] = _read(known, operands[3], f"{kind[0]}64")
    if name == "selp":
        choice = _read(known, operands[3], "pred")
        return None if choice is None else inputs[0 if choice else 1]
    # Zero times, or false and, what is not known.
    if name == "and" and kind == "pred" and False in inputs:
        return False
    if name == "or" and kind == "pred" and True in inputs:
        return True
    if any(x is None for x in inputs):
        return None
    return _compute(name, suffixes, kind, inputs)


def _compute(name, suffixes, kind, inputs):
    a, b, c = (*inputs, 0, 0)[:3]
    if name == "setp":
        return _COMPARISONS[suffixes[0]](a, b) if suffixes[0] in _COMPARISONS and len(suffixes) == 2 else None
    bits = _bits(kind)
    if name in ("mul", "mad") and suffixes[0] == "hi":
        return _wrap((a * b >> bits) + c, kind)
    if name in ("mul", "mad") and suffixes[0] == "wide":
        return _wrap(a * b + c, f"{kind[0]}{2 * bits}")
    if name == "cvt":
        return _wrap(a, suffixes[-2])
    if name in ("div", "rem") and b == 0:
        return None
    results = {
        "mov": lambda: a,
        "cvta": lambda: a,
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "mad": lambda: a * b + c,
        "div": lambda: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
        "rem": lambda: abs(a) % abs(b) * (-1 if a < 0 else 1),
        "min": lambda: min(a, b),
        "max": lambda: max(a, b),
        "abs": lambda: abs(a),
        "neg": lambda: -a,
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "not": lambda: not a if kind == "pred" else ~a,
        "shl": lambda: a << min(b, bits),
        "shr": lambda: a >> min(b, bits),
        "bfe": lambda: (a >> b) & ((1 << c) - 1),
    }
    if name not in results:
        return None
    value = results[name]()
    return bool(value) if kind == "pred" else _wrap(value, kind)


def _read(known, operand, kind):
    if operand.startswith("%"):
        value = known.get(operand)
    elif re.fullmatch(r"-?\d+", operand):
        value = int(operand)
    else:
        value = int(operand, 16) if re.fullmatch(r"0x[\da-fA-F]+", operand) else None
    return value if value is None or kind == "pred" else _wrap(value, kind)


def _bits(kind: str) -> int:
    found = re.search(r"\d+", kind)
    return int(found[0]) if found else 32


def _wrap(value: int, kind: str) -> int:
    """``value`` in so many bits, with or without a sign."""
    bits = _bits(kind)
    value &= (1 << bits) - 1
    if kind.startswith("s") and value >> (bits - 1):
        value -= 1 << bits
    return value

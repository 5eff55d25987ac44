"""What a change of the kernels may not exceed: registers, spills, shared memory; launches and memory of a block."""

from typing import Any

# Another release of ptxas hands registers out a little differently.
REGISTERS_MORE = 8
_EXACT = ("spill_bytes", "shared_bytes")
_BLOCK = ("launches_forward", "launches_backward", "kept_bytes", "peak_bytes")


def limits(found: dict[str, Any]) -> dict[str, Any]:
    """The limits that a report sets.

    Args:
        found: Of `report.report`, with its block.
    """
    return {
        "kernels": {_key(row): {k: row[k] for k in ("registers", *_EXACT)} for row in found["kernels"]},
        "block": {row["name"]: {k: row[k] for k in _BLOCK} for row in found["block"] if row["name"].startswith("ours")},
    }


def exceeded(found: dict[str, Any], allowed: dict[str, Any]) -> list[str]:
    """What is above the limits, or not among them, in words; empty if nothing is.

    Args:
        found: Of `report.report`, for the architecture and dtypes of the limits.
        allowed: Of `limits`.
    """
    rows = {_key(row): row for row in found["kernels"]}
    lines = []
    for name in sorted(rows.keys() ^ allowed["kernels"].keys()):
        lines.append(f"{name} is {'new' if name in rows else 'gone'}: make the limits anew")
    for name in sorted(rows.keys() & allowed["kernels"].keys()):
        row, limit = rows[name], allowed["kernels"][name]
        if not row["resident_warps"]:
            lines.append(f"{name} does not fit on a multiprocessor of {found['card']}")
        lines += _above(name, row, limit, "registers", REGISTERS_MORE)
        for what in _EXACT:
            lines += _above(name, row, limit, what, 0)
    for row in found.get("block", []):
        for what in _BLOCK:
            # Of memory, half a hundredth: other releases of PyTorch keep a vector more or less.
            limit = allowed["block"].get(row["name"])
            lines += _above(row["name"], row, limit, what, limit[what] // 200) if limit else []
    return lines


def _key(row: dict[str, Any]) -> str:
    return f"{row['operation']}: {row['kernel']}, {row['dtype']}"


def _above(name, row, limit, what, more):
    if row[what] <= limit[what] + more:
        return []
    return [f"{name}: {what} {row[what]:,}, allowed are {limit[what]:,}" + (f" and {more:,} more" if more else "")]

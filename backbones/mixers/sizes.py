"""From what users write as ``arch`` to sizes."""

from dataclasses import fields
from typing import Any


def resolve_arch(arch: str | dict | Any, table: dict[str, Any]) -> Any:
    """The sizes meant by a user's ``arch``.

    Args:
        arch: A name in ``table``, a dict of the sizes, or the sizes themselves.
        table: Name to sizes, all of one dataclass.

    Raises:
        ValueError: An unknown name, unknown or missing keys, sizes that do not fit each other.
        TypeError: Neither of the three.
    """
    kind = type(next(iter(table.values())))
    if isinstance(arch, kind):
        return arch
    if isinstance(arch, str):
        if arch not in table:
            raise ValueError(f"no arch {arch!r}: choose one of {', '.join(table)}, or give a dict of sizes")
        return table[arch]
    if not isinstance(arch, dict):
        raise TypeError(f"arch must be one of {', '.join(table)}, or a dict of sizes, got {arch!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(arch) - set(known))
    if unknown:
        raise ValueError(f"arch has unknown keys {unknown}; known are {list(known)}")
    try:
        return kind(**arch)
    except TypeError as error:
        raise ValueError(f"arch {dict(arch)} lacks sizes: {error}") from error

"""A format to export to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backbones.export.check import Runner
from backbones.export.network import Exportable


@dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        name: What users write behind ``--to``.
        suffixes: Of its files; the first is that of the file that users name, the others stand beside it.
        write: Writes the network to a path.
        load: What runs the file at a path.
        versions: Of the packages that wrote it.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Exportable, Path], None]
    load: Callable[[Path], Runner]
    versions: Callable[[], dict[str, str]]

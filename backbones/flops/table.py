"""The table of all configs and names of the project, in a marked block of a document."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backbones.defocus import FAMILIES
from backbones.flops.measure import Measurement
from backbones.flops.published import FIGURES, find_published
from backbones.flops.text import in_bytes, unknown_of
from backbones.model_zoo import CONFIG_FOLDERS, config_files
from defocus_eval.markdown import fill_blocks, plain_table

HEAD = (
    "config or name",
    "image",
    "parameters",
    "GFLOPs",
    "GMACs",
    "published GMACs",
    "kept for backward",
    "peak without gradients",
    "not counted, by name",
)


@dataclass(frozen=True)
class Entry:
    """A row to be measured.

    Attributes:
        part: Block of the document that it stands in.
        name: As `defocus flops` takes it, a config's from the root of the checkout.
        size: Height and width.
        options: Settings that differ from the config's.
    """

    part: str
    name: str
    size: tuple[int, int]
    options: tuple[str, ...] = ()


def entries() -> list[Entry]:
    """All configs and names of the project, and the models with published figures, at usual sizes."""
    found = [
        Entry("classification", f"defocus_{family.removeprefix('Defocus').lower()}_{arch}", (224, 224))
        for family, kind in FAMILIES.items()
        for arch in kind.block.archs
    ]
    found.append(Entry("classification", "defocus_mamba_large", (384, 384)))
    found += [Entry("classification", figure.name, figure.size) for figure in FIGURES]
    for name in config_files():
        framework, _, file = name.partition("/")
        path = Path(CONFIG_FOLDERS[framework], file)
        # Here the number of classes comes from a data set that need not be there.
        counted = framework == "detectron2" and path.suffix == ".py" and path.parent.name in ("custom", "shapes")
        options = ("data.num_classes=80",) if counted else ()
        found.append(Entry(CONFIG_FOLDERS[framework], path.as_posix(), _size(path), options))
    return found


def _size(path: Path) -> tuple[int, int]:
    """The image that the field takes for such a config, or the config's own crop or square."""
    if "tiny" in path.stem:
        return (240, 320) if "any" in path.stem or path.suffix == ".yaml" else (160, 160)
    crop = re.search(r"(\d+)x(\d+)$", path.stem)
    if crop:
        return int(crop[1]), int(crop[2])
    # Large-scale jitter, and Detectron2's R-CNNs, pad to a square.
    if "lsj" in path.stem or "rcnn" in path.parts:
        return 1024, 1024
    return 800, 1280


def row(entry: Entry, found: Measurement, root: str) -> str:
    """A line of the table.

    Args:
        entry: What was measured.
        found: What came out.
        root: What leads from the document to the project's root, such as "../".
    """
    published = find_published(entry.name, entry.size)
    cells = (
        _label(entry, root),
        f"{entry.size[0]} × {entry.size[1]}",
        f"{found.parameters / 1e6:.2f} M",
        f"{found.flops / 1e9:.2f}",
        f"{found.macs / 1e9:.2f}",
        f"{published.giga} ({published.source})" if published else "–",
        in_bytes(found.saved_bytes),
        in_bytes(found.peak_bytes),
        ", ".join(f"`{name}`" for name in unknown_of(found)) or "–",
    )
    return f"| {' | '.join(cells)} |\n"


def kept_row(entry: Entry, text: str, root: str) -> str | None:
    """The line that a document has of an entry already, or None."""
    start = f"| {_label(entry, root)} | {entry.size[0]} × {entry.size[1]} |"
    return next((f"{line}\n" for line in text.splitlines() if line.startswith(start)), None)


def _label(entry: Entry, root: str) -> str:
    if "/" not in entry.name:
        return f"`{entry.name}`"
    path = Path(entry.name)
    # Some are called the same on another data set.
    data = f"{path.parent.name}: " if path.parent.name == "LVIS" else ""
    return f"[{data}`{path.stem}`]({root}{entry.name})"


def update_tables(text: str, rows: Iterable[tuple[Entry, str]]) -> str:
    """Fills the marked blocks of a document, `<!-- flops: PART -->` to `<!-- /flops -->`, with their parts' lines.

    Raises:
        ValueError: A block asks for a part that has no rows.
    """
    parts: dict[str, list[str]] = {}
    for entry, line in rows:
        parts.setdefault(entry.part, []).append(line)

    def fill(part: str) -> str:
        if part not in parts:
            raise ValueError(f"there are no rows for {part!r}; known are {', '.join(parts)}")
        return plain_table(HEAD, ()) + "\n" + "".join(parts[part])

    return fill_blocks(text, "flops", fill)

"""Cityscapes' instances: a text file an image, and a PNG a mask.

A line of the text is `mask label score`: the mask's path from the text file, its label id, its score.

Source: `evalInstanceLevelSemanticLabeling.py` of cityscapesScripts (github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from defocus_eval.errors import InputError
from defocus_eval.formats.cityscapes import frame_of
from defocus_eval.formats.files import read_label_map


class Line(NamedTuple):
    """A predicted instance.

    Attributes:
        where: File and line, in words.
        mask: Its PNG.
        label: Label id.
        score: Its score.
    """

    where: str
    mask: Path
    label: int
    score: float


def find_text_files(folder: Path, frames: Collection[str]) -> tuple[dict[str, Path], list[Path]]:
    """The text file of each image, by `city_sequence_frame`, and those that belong to none.

    Raises:
        InputError: ``folder`` is none, or an image has no text file, or two.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder that holds a text file for each image, and the masks")
    found: dict[str, Path] = {}
    strangers = []
    for file in sorted(folder.rglob("*.txt")):
        frame = frame_of(file.stem)
        if frame is None or frame not in frames:
            strangers.append(file)
        elif frame in found:
            raise InputError(f"{found[frame]} and {file} both answer {frame}; keep one of them")
        else:
            found[frame] = file
    missing = [frame for frame in frames if frame not in found]
    if missing:
        raise InputError(
            f"{folder} has no text file for {len(missing):,} of {len(frames):,} images, the first {missing[0]}; "
            "predict them all (where nothing is found the file is empty)"
        )
    return found, strangers


def read_lines(file: Path) -> list[Line]:
    """The instances that a text file names.

    Raises:
        InputError: A line has not three parts, its mask lies elsewhere than below the file's folder, or its label or
            score is no number.
    """
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        where = f"{file}, line {number}"
        parts = text.split(" ")
        if len(parts) != 3:
            raise InputError(
                f"{where}: {text!r} has {len(parts)} parts; write the mask's path, its label id and its score, one "
                "space between them and none in the path"
            )
        path, label, score = Path(parts[0]), _number(parts[1]), _number(parts[2])
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{where}: {path} leads out of the folder; write the mask's path from the text file on")
        if label is None or not label.is_integer():
            raise InputError(f"{where}: label {parts[1]!r} is no whole number; write the label id")
        if score is None:
            raise InputError(f"{where}: score {parts[2]!r} is no finite number; write one, greater for more certain")
        lines.append(Line(where, file.parent / path, int(label), score))
    return lines


def read_mask(line: Line, height: int, width: int) -> np.ndarray:
    """The mask of a line, `(height, width)` bool.

    Raises:
        InputError: It is missing, broken, has colours, or another size.
    """
    try:
        mask = read_label_map(line.mask)
    except InputError as error:
        raise InputError(f"{line.where}: {error}") from error
    if mask.shape != (height, width):
        raise InputError(
            f"{line.where}: {line.mask.name} is {mask.shape[1]}×{mask.shape[0]}, its image {width}×{height}; write "
            "masks at the size of the image"
        )
    return mask != 0


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

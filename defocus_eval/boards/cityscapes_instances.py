"""Cityscapes' instances: a text file an image, and a PNG a mask, at the root of the zip."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from defocus_eval.boards.archive import Member
from defocus_eval.boards.content import Content, Request
from defocus_eval.errors import InputError
from defocus_eval.formats import Truth
from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID, LABELS, image_key
from defocus_eval.formats.cityscapes_instances import Line, find_text_files, read_lines, read_mask
from defocus_eval.progress import with_progress

# Labels that the board scores as instances, and those that it knows and passes over.
_SCORED = {label.id for label in LABELS if label.has_instances and label.counts}
_KNOWN = {label.id for label in LABELS}
_TRAIN_IDS = {label.train_id for label in LABELS if label.id in _SCORED}


def prepare(request: Request, truth: Truth) -> Content:
    """Checks instances and makes the text files and masks of a package.

    Mended are masks without a pixel, labels that are not scored as instances, and, if the request says so, train ids.

    Raises:
        InputError: An image has no text file, or two; a line is not what the board takes; a mask is missing, broken,
            used twice, or of another size than its image. Masks are looked at while they are written.
    """
    wanted = {image_key(Path(record["file_name"]).stem): record for record in truth.images.values()}
    files, strangers = find_text_files(request.predictions, wanted)
    content = Content(task="instances")
    if strangers:
        content.notes.append(f"{len(strangers)} text files belong to no image and were left out: {strangers[0]} …")
    answers = {frame: read_lines(files[frame]) for frame in wanted}
    lines = [line for answer in answers.values() for line in answer]
    _check_labels(lines, request)
    _check_used_once(lines)
    content.summary = f"{len(lines):,} masks in {len(wanted):,} images"
    content.members = _members(request, answers, wanted, content)
    return content


def _check_labels(lines: list[Line], request: Request) -> None:
    if request.labels == "train":
        for line in lines:
            if line.label not in range(len(LABEL_OF_TRAIN_ID)):
                raise InputError(
                    f"{line.where}: label {line.label} is no train id (0 to {len(LABEL_OF_TRAIN_ID) - 1}); leave out "
                    "--labels train if these are label ids"
                )
        return
    for line in lines:
        if line.label not in _KNOWN:
            raise InputError(
                f"{line.where}: label {line.label} is not known to the board; write label ids: "
                f"{', '.join(map(str, sorted(_SCORED)))}"
            )
    labels = {line.label for line in lines}
    if labels and request.labels is None and labels <= _TRAIN_IDS:
        raise InputError(
            f"{lines[0].where}: label {lines[0].label}, and all {len(lines):,} lines have labels from {min(labels)} to "
            f"{max(labels)}: train ids, where the board takes label ids ({min(_SCORED)} to {max(_SCORED)}). Say "
            "--labels train to translate them"
        )


def _check_used_once(lines: list[Line]) -> None:
    seen: dict[Path, str] = {}
    for line in lines:
        if line.mask in seen:
            raise InputError(
                f"{line.where}: {line.mask.name} stands in {seen[line.mask]} too, and the board would count its last "
                "line alone; write a PNG for each line"
            )
        seen[line.mask] = line.where


def _members(request: Request, answers: dict[str, list[Line]], wanted: dict, content: Content) -> Iterator[Member]:
    for frame, lines in with_progress(answers.items(), len(answers), "packing masks"):
        image = wanted[frame]
        text: list[str] = []
        for line in lines:
            label = line.label
            if request.labels == "train":
                label = int(LABEL_OF_TRAIN_ID[label])
                content.mended["{count} labels translated from train ids to label ids"] += 1
            if label not in _SCORED:
                content.mended["{count} lines left out whose label is not scored as instances"] += 1
                continue
            mask = read_mask(line, image["height"], image["width"])
            if not mask.any():
                content.mended["{count} lines left out whose mask has no pixel"] += 1
                continue
            name = f"{frame}_{len(text)}.png"
            text.append(f"{name} {label} {line.score!r}\n")
            yield Member(name, [_as_png(mask)])
        yield Member(f"{frame}.txt", ["".join(text).encode()])


def _as_png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # One bit a pixel.
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()

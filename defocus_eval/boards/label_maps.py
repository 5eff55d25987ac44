"""A PNG of labels an image, at the root of the zip: ADE20K and Cityscapes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from defocus_eval.boards.archive import Member
from defocus_eval.boards.content import Content, Request
from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, prediction_maps, read_predictions
from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID, image_key
from defocus_eval.progress import with_progress

# What trainers write where no class was found; both boards have 0 for it.
_UNDECIDED, _NONE = 255, 0


def prepare(request: Request, truth: Truth) -> Content:
    """Checks label maps and makes the PNGs of a package.

    Mended are pixels of 255, which become 0, and, if the request says so, labels numbered from 0 as nets are trained
    on them.

    Raises:
        InputError: A map is missing, broken, of another size than its image, or holds a label that the board does not
            know; or all of them look as if they were numbered otherwise. They are looked at while they are written.
    """
    predictions = read_predictions(request.predictions, truth, request.folder)
    if "semantic" not in predictions.kind:
        raise InputError(
            f"{request.predictions} holds {' and '.join(predictions.kind)}, {request.board.name} takes label maps; "
            "give the folder of PNGs"
        )
    content = Content(task="semantic", notes=list(predictions.notes), summary=f"{len(truth.images):,} label maps")
    content.members = _members(request, predictions, truth, content)
    return content


def _members(request: Request, predictions: Predictions, truth: Truth, content: Content) -> Iterator[Member]:
    board, translation = request.board, None
    if request.labels == "train":
        translation = _FROM_TRAINING[board.name]
    seen: Counter = Counter()
    maps = with_progress(prediction_maps(predictions, truth), len(truth.images), "packing label maps")
    for image_id, labels in maps:
        where = _place(predictions, image_id)
        if translation is not None:
            labels = _translate(labels, translation, where)
            content.mended["{count} maps translated from the labels of training to those of the board"] += 1
        undecided = labels == _UNDECIDED
        if undecided.any():
            labels = np.where(undecided, _NONE, labels)
            content.mended[f"{{count}} maps in which undecided pixels ({_UNDECIDED}) became {_NONE}"] += 1
        present = np.unique(labels).tolist()
        wrong = [label for label in present if label not in board.labels]
        if wrong:
            row, column = np.argwhere(labels == wrong[0])[0].tolist()
            raise InputError(
                f"{where} holds label {wrong[0]} (row {row}, column {column}), {board.name} knows {board.labels[0]} to "
                f"{board.labels[-1]}; write the board's labels"
            )
        seen.update(present)
        yield Member(_file_name(truth.images[image_id]["file_name"]), [_as_png(labels)])
    if request.labels is None:
        _SUSPICION[board.name](seen, len(truth.images), request)


def _place(predictions: Predictions, image_id: int) -> str:
    if predictions.files:
        return str(predictions.files[image_id])
    entries = predictions.entries["semantic"]
    index = next(index for index, entry in enumerate(entries) if entry["image_id"] == image_id)
    return predictions.numbers["semantic"](index)


def _file_name(image: str) -> str:
    """`ADE_test_00000001.png`; `berlin_000000_000019.png`."""
    return f"{image_key(Path(image).stem)}.png"


def _translate(labels: np.ndarray, translation: np.ndarray, where: str) -> np.ndarray:
    wrong = np.argwhere((labels >= len(translation)) & (labels != _UNDECIDED))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{where} holds label {labels[row, column]} (row {row}, column {column}), training has 0 to "
            f"{len(translation) - 1}; leave out --labels train if these are the board's labels"
        )
    # Undecided pixels stay what they are.
    table = np.full(_UNDECIDED + 1, _UNDECIDED, np.uint8)
    table[: len(translation)] = translation
    return table[labels]


def _as_png(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8), "L").save(buffer, "PNG")
    return buffer.getvalue()


def _suspect_ade20k(seen: Counter, images: int, request: Request) -> None:
    # A net never predicts "other", which is 0.
    if seen[0] and not seen[150]:
        raise InputError(
            f"{request.predictions} holds label 0 in {seen[0]:,} of {images:,} maps and 150 in none: classes numbered "
            "from 0, where the board numbers them from 1 and has 0 for none (mmseg's IoUMetric adds 1 only if its "
            "samples say reduce_zero_label). Say --labels train to add 1, --labels board if 0 does mean none"
        )


def _suspect_cityscapes(seen: Counter, images: int, request: Request) -> None:
    largest = max(seen)
    if largest < len(LABEL_OF_TRAIN_ID):
        raise InputError(
            f"{request.predictions} holds no label above {largest} in {images:,} maps: train ids (0 to 18), where the "
            "board takes label ids (7 to 33). Say --labels train to translate them, --labels board if they are such"
        )


_SUSPICION = {"ade20k": _suspect_ade20k, "cityscapes": _suspect_cityscapes}
# The board's label by the label of training.
_FROM_TRAINING = {"ade20k": np.arange(1, 151, dtype=np.uint8), "cityscapes": LABEL_OF_TRAIN_ID}

"""Boxes or masks in COCO's results format: COCO, LVIS, Objects365."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from defocus_eval.boards.archive import Member
from defocus_eval.boards.content import Content, Request
from defocus_eval.boards.images import known_to_be_empty
from defocus_eval.boards.rules import Board
from defocus_eval.boards.run_lengths import first_fault
from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, read_predictions
from defocus_eval.progress import with_progress

_NAMES = {"bbox": "boxes", "segm": "masks"}
_FIELDS = {"bbox": "bbox", "segm": "segmentation"}
# Boxes that stick out of their image by this part of its side are corners written as sizes, if this many do.
_OVERHANG, _MANY = 0.1, 0.1
# Entries that become text at a time.
_BATCH = 1000


class Detections(NamedTuple):
    """The entries of one task.

    Attributes:
        entries: In COCO's results format.
        task: "bbox" or "segm".
        where: The place of each entry in the user's file, in words.
    """

    entries: list[dict]
    task: str
    where: _Places


class _Places:
    """Places of entries, made into words where one is wanted."""

    def __init__(self, predictions: Predictions, task: str):
        self._number, self._count = predictions.numbers[task], len(predictions.entries[task])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return self._number(index)


def prepare(request: Request, truth: Truth) -> Content:
    """Checks detections and makes the JSON of a package.

    Mended are keys that the board does not take, long decimals, the order, and what lies beyond the board's limit.

    Raises:
        InputError: An entry is not what the board takes, an image is neither answered nor known to be empty, or is
            answered twice.
    """
    board = request.board
    predictions = read_predictions(request.predictions, truth)
    task = _task(request, predictions)
    found = Detections(predictions.entries[task], task, _Places(predictions, task))
    _check_scores(found)
    if task == "bbox":
        _check_boxes(found, truth)
    else:
        _check_masks(found)
    _check_twice(found)
    _check_coverage(request, found, truth)

    # What was understood and mended while it was read concerns masks.
    content = Content(task=task, notes=list(predictions.notes) if task == "segm" else [])
    entries = _cut(found.entries, board, content)
    entries = _sort(entries, content)
    entries = _plain(entries, task, request.decimals, content)
    images = len({entry["image_id"] for entry in entries})
    content.summary = f"{len(entries):,} {_NAMES[task]} in {images:,} of {len(truth.images):,} images"
    content.members = [Member(f"{request.package}.json", _to_json(entries))]
    return content


def _task(request: Request, predictions: Predictions) -> str:
    board, task = request.board, request.task
    offered = [name for name in board.tasks if name in predictions.kind]
    if task is not None and task not in board.tasks:
        raise InputError(f"{board.name} does not score {_NAMES[task]}; take --task {' or '.join(board.tasks)}")
    wanted = _NAMES[task] if task else " or ".join(_NAMES[name] for name in board.tasks)
    if not offered or (task is not None and task not in offered):
        held = " and ".join(_NAMES.get(name, name) for name in predictions.kind)
        raise InputError(
            f"{request.predictions} holds {held}, {board.name} takes {wanted}; give the file with {wanted} "
            "(mmdet: .segm.json has masks, .bbox.json boxes)"
        )
    if task is None and len(offered) > 1:
        raise InputError(
            f"{request.predictions} holds boxes and masks, a package of {board.name} one of them; say --task bbox or "
            "--task segm"
        )
    return task or offered[0]


def _check_scores(found: Detections) -> None:
    scores = np.array([entry["score"] for entry in found.entries], np.float64)
    wrong = np.flatnonzero((scores < 0) | (scores > 1))
    if len(wrong):
        raise InputError(
            f"{found.where[wrong[0]]}: score {found.entries[wrong[0]]['score']} does not lie between 0 and 1; write "
            "probabilities, the sigmoid or softmax of the model's output"
        )


def _check_boxes(found: Detections, truth: Truth) -> None:
    boxes = np.array([entry["bbox"] for entry in found.entries], np.float64)
    images = [truth.images[entry["image_id"]] for entry in found.entries]
    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64)
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    outside = ((starts >= sizes) | (ends < 0)).any(1)
    overhang = np.flatnonzero((ends > sizes * (1 + _OVERHANG)).any(1) & ~outside)
    if len(overhang) > _MANY * len(boxes):
        index = overhang[0]
        raise InputError(
            f"{found.where[index]}: bbox {found.entries[index]['bbox']} reaches beyond its image of "
            f"{sizes[index][0]:g}×{sizes[index][1]:g}, and so do {len(overhang):,} of {len(boxes):,}; write "
            "x, y, width, height in pixels of the original image, not two corners"
        )
    if outside.any():
        index = np.flatnonzero(outside)[0]
        raise InputError(
            f"{found.where[index]}: bbox {found.entries[index]['bbox']} lies outside of its image of "
            f"{sizes[index][0]:g}×{sizes[index][1]:g}; write boxes in pixels of the original image"
        )


def _check_masks(found: Detections) -> None:
    masks = [entry["segmentation"] for entry in found.entries]
    fault = first_fault([mask["counts"] for mask in masks], [mask["size"][0] * mask["size"][1] for mask in masks])
    if fault is not None:
        index, words = fault
        raise InputError(
            f"{found.where[index]}: its run-length code is broken ({words}); encode the mask with "
            "pycocotools.mask.encode and write counts as text"
        )


def _check_twice(found: Detections) -> None:
    """An image all of whose entries stand there twice was answered twice."""
    by_image: dict[int, dict[tuple, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, entry in enumerate(found.entries):
        shape = tuple(entry["bbox"]) if found.task == "bbox" else entry["segmentation"]["counts"]
        by_image[entry["image_id"]][entry["category_id"], entry["score"], shape].append(index)
    for image_id, groups in by_image.items():
        if all(len(indices) > 1 for indices in groups.values()):
            first, second = next(iter(groups.values()))[:2]
            raise InputError(
                f"{found.where[second]} repeats {found.where[first].rpartition(', ')[2]}, and so does every entry of "
                f"image {image_id}: it was answered twice, as when parts of two runs are joined; keep one answer"
            )


def _check_coverage(request: Request, found: Detections, truth: Truth) -> None:
    answered = {entry["image_id"] for entry in found.entries}
    empty = known_to_be_empty(request.known_empty, truth.images, request.images)
    if "all" not in request.known_empty and (contradicted := sorted(answered & empty)):
        index = next(i for i, entry in enumerate(found.entries) if entry["image_id"] == contradicted[0])
        raise InputError(
            f"{found.where[index]} finds something in image {contradicted[0]}, which is said to be empty; correct "
            "--known-empty"
        )
    missing = [image_id for image_id in truth.images if image_id not in answered and image_id not in empty]
    if missing:
        some = " ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise InputError(
            f"{request.predictions} has no detection in {len(missing):,} of {len(truth.images):,} images, ids {some}; "
            "run the model on them, or, if it did run and found nothing, say --known-empty with their ids, or all"
        )


def _cut(entries: list[dict], board: Board, content: Content) -> list[dict]:
    """The best entries of each image, or of each class; of equal scores the earlier ones."""
    for key, limit, of in (("image_id", board.per_image, "an image"), ("category_id", board.per_class, "a class")):
        if limit is None:
            continue
        counts = Counter(entry[key] for entry in entries)
        if max(counts.values()) <= limit:
            continue
        by_key = defaultdict(list)
        for index, entry in enumerate(entries):
            by_key[entry[key]].append(index)
        kept = set()
        for indices in by_key.values():
            kept.update(sorted(indices, key=lambda index: -entries[index]["score"])[:limit])
        what = f"{{count}} detections left out beyond the best {limit:,} {of}, which {board.name} does not count"
        content.mended[what] = len(entries) - len(kept)
        content.cut = True
        entries = [entry for index, entry in enumerate(entries) if index in kept]
    return entries


def _sort(entries: list[dict], content: Content) -> list[dict]:
    """By image, the best first; equal ones stay in their order, which scoring goes by."""
    ordered = sorted(entries, key=lambda entry: (entry["image_id"], -entry["score"]))
    moved = sum(one is not other for one, other in zip(ordered, entries))
    content.mended["{count} entries put in order, by image and score"] = moved
    return ordered


def _plain(entries: list[dict], task: str, decimals: int | None, content: Content) -> list[dict]:
    """Entries with the keys that the board takes, scores as short as they can be without becoming others."""
    field = _FIELDS[task]
    taken = {"image_id", "category_id", "score", field}
    dropped = sorted({key for entry in entries for key in entry} - taken)
    if dropped:
        content.mended[f"{{count}} entries rid of keys that the board does not take: {', '.join(dropped)}"] = sum(
            not taken.issuperset(entry) for entry in entries
        )
    scores = _shortest([entry["score"] for entry in entries])
    content.mended["{count} scores written without digits that their 32 bits never held"] = sum(
        score != entry["score"] for score, entry in zip(scores, entries)
    )
    plain = []
    for entry, score in zip(entries, scores):
        shape = entry[field]
        if task == "segm":
            counts = shape["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            shape = {"size": [int(side) for side in shape["size"]], "counts": text}
        elif decimals is not None:
            shape = [round(number, decimals) for number in shape]
            content.mended[f"{{count}} boxes rounded to {decimals} digits"] += shape != entry[field]
        plain.append({"image_id": entry["image_id"], "category_id": entry["category_id"], field: shape, "score": score})
    return plain


def _shortest(scores: list[float]) -> list[float]:
    """The shortest decimals that are the same fp32 numbers, if all are such: their order and their ties stay."""
    wide = np.array(scores, np.float64)
    narrow = wide.astype(np.float32)
    if not np.array_equal(narrow.astype(np.float64), wide):
        return scores
    return narrow.astype(str).astype(np.float64).tolist()


def _to_json(entries: list[dict]) -> Iterator[bytes]:
    yield b"["
    starts = range(0, len(entries), _BATCH)
    for start in with_progress(starts, len(starts), "packing detections", "batch"):
        batch = [json.dumps(entry, separators=(",", ":")) for entry in entries[start : start + _BATCH]]
        yield ((",\n" if start else "") + ",\n".join(batch)).encode()
    yield b"]\n"

"""COCO's instances and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from defocus_eval.errors import InputError
from defocus_eval.formats.masks import run_length_code
from defocus_eval.formats.records import Predictions, Task, Truth

# What a file of results may answer, in the order of a report.
OBJECT_TASKS: tuple[Task, ...] = ("bbox", "segm")
# Keys of an entry in the order in which each trainer writes them.
WRITERS = {
    ("image_id", "bbox", "score", "category_id"): "mmdet",
    ("image_id", "bbox", "score", "category_id", "segmentation"): "mmdet",
    ("image_id", "category_id", "bbox", "score"): "detectron2",
    ("image_id", "category_id", "bbox", "score", "segmentation"): "detectron2",
}


def check_lists(path: Path, content: object, cure: str) -> None:
    """Refuses what has no non-empty lists of images and categories, whose ids and names are whole and unique.

    Raises:
        InputError: It has not.
    """
    found = content if isinstance(content, dict) else {}
    for key, keys in (("images", ("id",)), ("categories", ("id", "name"))):
        if not isinstance(found.get(key), list):
            raise InputError(f"{path} is not a COCO annotation file: it has no list {key!r}; {cure}")
        if not found[key]:
            raise InputError(f"{path} lists no {key}; {cure}")
        for number, record in enumerate(found[key], 1):
            absent = [name for name in keys if name not in record] if isinstance(record, dict) else list(keys)
            if absent:
                raise InputError(f"{path}, {key} {number} has no {', '.join(absent)}; {cure}")
        ids = Counter(record["id"] for record in found[key])
        twice = next((record_id for record_id, count in ids.items() if count > 1), None)
        if twice is not None:
            raise InputError(f"{path}: id {twice} stands twice among its {key}; give each its own")
        wrong = next((record_id for record_id in ids if type(record_id) is not int), None)
        if wrong is not None:
            raise InputError(f"{path}: id {wrong!r} among its {key} is no whole number; number them")


def read_truth(path: Path, content: dict, categories: dict[int, str]) -> Truth:
    """Ground truth of boxes, and of masks where it has them; a missing `iscrowd` becomes 0.

    Raises:
        InputError: An annotation lacks something or belongs to nothing.
    """
    images = {image["id"]: image for image in content["images"]}
    ids = set()
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path}, annotation {number}"
        absent = [key for key in ("id", "image_id", "category_id", "bbox", "area") if key not in annotation]
        if absent:
            raise InputError(f"{where} has no {', '.join(absent)}; COCO's evaluation needs it")
        for key, known in (("image_id", images), ("category_id", categories)):
            if annotation[key] not in known:
                raise InputError(
                    f"{where}: {key} {annotation[key]} is not listed in the file; add it or drop the entry"
                )
        if annotation["id"] in ids:
            raise InputError(f"{where}: id {annotation['id']} stands there twice; give each annotation its own")
        ids.add(annotation["id"])
        annotation.setdefault("iscrowd", 0)
    return Truth("instances", path, content, categories, images)


def read_results(path: Path, content: list[dict], truth: Truth) -> Predictions:
    """Detections in COCO's results format.

    mmdet keeps the boxes in its files of masks: those are no boxes to score (its own are in `.bbox.json`), and
    pycocotools would take mask sizes from them. Detectron2 has boxes and masks in one file: both are scored.

    Raises:
        InputError: An entry lacks something, holds no finite numbers, or belongs to nothing in the ground truth.
    """
    if truth.kind not in ("instances", "lvis", "images"):
        raise InputError(
            f"{path} holds boxes or masks of objects, {truth.path} is ground truth of kind {truth.kind}; "
            "give the instances annotations"
        )
    orders = {tuple(entry) for entry in content if type(entry) is dict}
    _check_keys(path, content, orders)
    _check_references(path, content, truth)
    masks = [index for index, entry in enumerate(content) if "segmentation" in entry]
    boxes = [index for index, entry in enumerate(content) if "bbox" in entry]
    writers = {WRITERS.get(order, "unknown") for order in orders}
    writer = writers.pop() if len(writers) == 1 else "unknown"
    notes, box_areas = [], None
    if masks and boxes:
        notes.append(
            f"{path.name}: bbox was taken out of {len(masks)} entries of masks: with it pycocotools takes a mask's "
            "size from its box, and APs, APm, APl of masks are wrong"
        )
        if writer == "mmdet":
            masked = set(masks)
            boxes = [index for index in boxes if index not in masked]
        if all("bbox" in content[index] for index in masks):
            box_areas = _boxes(path, content, masks)[:, 2:].prod(1)
    _boxes(path, content, boxes)
    entries: dict[str, list[dict]] = {}
    numbers: dict[str, Callable] = {}
    if boxes:
        chosen = content if len(boxes) == len(content) else [content[index] for index in boxes]
        entries["bbox"] = [_without(entry, "segmentation") for entry in chosen] if masks else chosen
        numbers["bbox"] = _numbering(path, boxes)
    if masks:
        entries["segm"], mended = _masks(path, content, masks, truth)
        numbers["segm"] = _numbering(path, masks)
        notes += mended
    kind = tuple(task for task in OBJECT_TASKS if task in entries)
    return Predictions(kind, writer, path, entries, numbers=numbers, notes=tuple(notes), box_areas=box_areas)


def _numbering(path: Path, indices: list[int]) -> Callable[[int], str]:
    return lambda index: f"{path}, entry {indices[index] + 1}"


def _without(entry: dict, key: str) -> dict:
    if key not in entry:
        return entry
    return {name: value for name, value in entry.items() if name != key}


def _check_keys(path: Path, content: list, orders: set[tuple]) -> None:
    """Refuses the first entry whose keys, one of ``orders``, are not those of a result."""
    cure = "write COCO results: image_id, category_id, score, bbox or segmentation"
    if set(map(type, content)) != {dict}:
        number = next(n for n, entry in enumerate(content, 1) if type(entry) is not dict)
        raise InputError(f"{path} is not a COCO results file: entry {number} is no object; {cure}")
    wrong = {order: absent for order in orders if (absent := _absent(order))}
    if wrong:
        number, order = next((n, tuple(entry)) for n, entry in enumerate(content, 1) if tuple(entry) in wrong)
        names = ", ".join(wrong[order])
        raise InputError(f"{path} is not a COCO results file: entry {number} has no {names}; {cure}")


def _absent(keys: tuple) -> list[str]:
    absent = [key for key in ("image_id", "category_id", "score") if key not in keys]
    if "bbox" not in keys and "segmentation" not in keys:
        absent.append("bbox or segmentation")
    return absent


def _check_references(path: Path, content: list[dict], truth: Truth) -> None:
    for key, known in (("image_id", truth.images), ("category_id", truth.categories)):
        strangers = {value for value in _distinct(path, content, key) if value not in known}
        if strangers:
            number, value = next((n, e[key]) for n, e in enumerate(content, 1) if e[key] in strangers)
            raise InputError(
                f"{path}, entry {number}: {key} {value} does not occur in {truth.path}; "
                "give the annotations that the predictions were made for"
            )
    scores = _numbers(path, content, "score", ())
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise InputError(f"{path}, entry {bad[0] + 1}: score is not finite; write a number between 0 and 1")


def _distinct(path: Path, content: list[dict], key: str) -> set:
    values = [entry[key] for entry in content]
    if set(map(type, values)) != {int}:
        number, value = next((n, value) for n, value in enumerate(values, 1) if type(value) is not int)
        raise InputError(f"{path}, entry {number}: {key} {value!r} is no whole number; write the id of the truth")
    return set(values)


def _numbers(path: Path, content: list[dict], key: str, shape: tuple[int, ...], indices: Iterable[int] | None = None):
    """Column of numbers, `(n, *shape)` float64."""
    indices = range(len(content)) if indices is None else indices
    values = [content[index][key] for index in indices]
    try:
        column = np.array(values)
    except ValueError:
        column = None
    # Text becomes no number here: a score of "0.9" is refused.
    if column is not None and column.shape == (len(values), *shape) and column.dtype.kind in "iuf":
        return column.astype(np.float64)
    what = f"{shape[0]} numbers" if shape else "a number"
    for index, value in zip(indices, values):
        parts = value if isinstance(value, list) else [value]
        right = isinstance(value, list) == bool(shape) and (not shape or len(parts) == shape[0])
        if not right or not all(type(part) in (int, float) for part in parts):
            raise InputError(f"{path}, entry {index + 1}: {key} {value!r} is not {what}; write {what}")
    raise AssertionError("a column that is no array has an entry that is wrong")


def _boxes(path: Path, content: list[dict], indices: list[int]) -> np.ndarray:
    """Boxes of some entries, `(n, 4)`."""
    if not indices:
        return np.zeros((0, 4))
    column = _numbers(path, content, "bbox", (4,), indices)
    bad = np.flatnonzero(~np.isfinite(column).all(1) | (column[:, 2:] < 0).any(1))
    if len(bad):
        index = indices[bad[0]]
        raise InputError(
            f"{path}, entry {index + 1}: bbox {content[index]['bbox']} is no box; "
            "write finite x, y, width, height in pixels, width and height not negative"
        )
    return column


def _masks(path: Path, content: list[dict], masks: list[int], truth: Truth) -> tuple[list[dict], list[str]]:
    """Entries of masks without boxes, their codes compressed, and what was mended."""
    entries, converted = [], 0
    for index in masks:
        entry = _without(content[index], "bbox")
        record = truth.images[entry["image_id"]]
        mask = entry["segmentation"]
        size = (record["height"], record["width"])
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
            mask = _compress(mask, size, f"{path}, entry {index + 1}")
            entry = {**entry, "segmentation": mask}
            converted += 1
        if tuple(mask.get("size", ())) != size:
            raise InputError(
                f"{path}, entry {index + 1}: its mask has size {mask.get('size')}, its image {list(size)} "
                "(height, width); write masks at the size of the image"
            )
        entries.append(entry)
    if converted:
        return entries, [f"{path.name}: {converted} masks were polygons or plain counts and were compressed"]
    return entries, []


def _compress(mask: Any, size: tuple[int, int], where: str) -> dict:
    try:
        if isinstance(mask, dict):
            if sum(mask["counts"]) != size[0] * size[1] or any(count < 0 for count in mask["counts"]):
                raise ValueError("the counts do not add up to the image")
        elif not mask or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            raise ValueError("a polygon has fewer than three corners")
        return run_length_code(mask, *size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: segmentation is no mask ({error}); write a run-length code, {{'size': [height, width], "
            "'counts': text}}"
        ) from error

"""Scores of label maps: IoU of classes, as mmseg, ADE20K and Cityscapes define it.

Pixels are counted once, by image, true and predicted label; scores, intervals and readings of the labels follow from
the counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, prediction_maps, read_label_map
from defocus_eval.formats.cityscapes import IGNORED, LABEL_OF_TRAIN_ID, LABELS
from defocus_eval.formats.label_maps import ADE20K_CLASSES, CITYSCAPES_SUFFIX
from defocus_eval.progress import with_progress
from defocus_eval.scores.bootstrap import interval_of_fraction
from defocus_eval.scores.metrics import mean_of_defined

# Labels are bytes.
VALUES = 256
HITS, TRUE, FOUND = range(3)
# Pixels of an average object of a Cityscapes class: weights of iIoU, constants of its evaluation.
OBJECT_PIXELS = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "caravan": 36771.8241758242,
    "trailer": 16926.9763313609,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


@dataclass(frozen=True)
class Pixels:
    """Pixels by image, true label and predicted label, each `(n,)`.

    Attributes:
        image: Row of the image.
        true: Label of the ground truth.
        found: Predicted label.
        amount: How many pixels, or their weight.
    """

    image: np.ndarray
    true: np.ndarray
    found: np.ndarray
    amount: np.ndarray

    def by_class(self, images: int, true_row: np.ndarray, found_row: np.ndarray, rows: int) -> np.ndarray:
        """Pixels that are right, that are of a class, and that were predicted as it.

        Args:
            images: Number of images.
            true_row: `(256,)` class of each true label, -1 where its pixels do not count.
            found_row: `(256,)` class of each predicted label, -1 where it is none.
            rows: Number of classes.

        Returns:
            `(images, rows, 3)` float64.
        """
        counts = np.zeros((images, rows, 3))
        true, found = true_row[self.true], found_row[self.found]
        counting = true >= 0
        named = counting & (found >= 0)
        right = counting & (true == found)
        for column, chosen, row in ((HITS, right, true), (TRUE, counting, true), (FOUND, named, found)):
            np.add.at(counts[..., column], (self.image[chosen], row[chosen]), self.amount[chosen])
        return counts


def count_pixels(truth: Truth, predictions: Predictions) -> tuple[Pixels, Pixels]:
    """Counts pixels of all images, and those of single objects by weight, where Cityscapes has them.

    Raises:
        InputError: A map is missing, broken, of another size or has labels above 255.
    """
    counted, weighted = [], []
    maps = prediction_maps(predictions, truth)
    for row, (image_id, found) in enumerate(with_progress(maps, len(truth.images), "label maps")):
        path = truth.files[image_id]
        true = read_label_map(path)
        for labels, source in ((true, path), (found, predictions.files.get(image_id, predictions.path))):
            if labels.dtype != np.uint8 and (labels.min() < 0 or labels.max() >= VALUES):
                raise InputError(f"{source} has label {labels.max()}; labels lie between 0 and 255")
        if true.shape != found.shape:
            raise InputError(
                f"{predictions.files[image_id]} is {found.shape[1]}×{found.shape[0]}, its ground truth "
                f"{true.shape[1]}×{true.shape[0]}; write predictions at the size of the ground truth"
            )
        pairs = np.bincount(true.ravel().astype(np.int32) * VALUES + found.ravel(), minlength=VALUES**2)
        counted.append(_column(row, np.flatnonzero(pairs), pairs))
        objects = path.with_name(path.name.replace(CITYSCAPES_SUFFIX, "_gtFine_instanceIds"))
        if truth.kind == "cityscapes" and objects.is_file():
            weighted.append(_weigh_objects(row, read_label_map(objects), found))
    return _join(counted), _join(weighted)


def _column(row: int, pairs: np.ndarray, amounts: np.ndarray) -> Pixels:
    true, found = np.divmod(pairs, VALUES)
    return Pixels(np.full(len(pairs), row), true, found, amounts[pairs].astype(np.float64))


def _weigh_objects(row: int, objects: np.ndarray, found: np.ndarray) -> Pixels:
    """Pixels of single objects, each weighted by how much smaller the object is than those of its class."""
    weights = np.zeros(VALUES**2)
    single = objects > 1000
    ids, place, sizes = np.unique(objects[single], return_inverse=True, return_counts=True)
    pixels = np.bincount(place * VALUES + found[single], minlength=len(ids) * VALUES).reshape(-1, VALUES)
    for object_id, size, of_labels in zip(ids.tolist(), sizes.tolist(), pixels):
        label = LABELS[object_id // 1000]
        if label.counts:
            start = label.id * VALUES
            weights[start : start + VALUES] += of_labels * (OBJECT_PIXELS[label.name] / size)
    return _column(row, np.flatnonzero(weights), weights)


def _join(parts: list[Pixels]) -> Pixels:
    columns = zip(*((part.image, part.true, part.found, part.amount) for part in parts))
    found = [np.concatenate(column) for column in columns]
    if found:
        return Pixels(*found)
    none = np.zeros(0, np.int64)
    return Pixels(none, none, none, np.zeros(0))


def read_labels(pixels: Pixels, truth: Truth) -> tuple[np.ndarray | None, str]:
    """How predicted labels are to be read where a trainer writes others than the board takes.

    Returns:
        `(256,)` official label of each predicted one, None where they are official; and what to tell the user.
    """
    values = set(np.unique(pixels.found).tolist())
    table: np.ndarray = np.arange(VALUES)
    if truth.kind == "cityscapes" and max(values - {IGNORED}, default=0) < len(LABEL_OF_TRAIN_ID):
        scored = {label.id for label in LABELS if label.counts}
        if values - {IGNORED} - scored:
            table[:] = 0
            table[: len(LABEL_OF_TRAIN_ID)] = LABEL_OF_TRAIN_ID
            return table, (
                "the predictions are train ids (0 to 18), as mmseg's IoUMetric writes them: they were read as the "
                "label ids of their classes; the board takes label ids alone, as CityscapesMetric(format_only=True) "
                "writes them"
            )
    if truth.kind == "ade20k" and 0 in values and ADE20K_CLASSES not in values:
        table = np.where(table < ADE20K_CLASSES, table + 1, 0)
        return table, (
            "the predictions hold label 0 and no 150: they were read as 0 to 149, one less than the board's labels; "
            "mmseg's IoUMetric adds the one where the sample knows reduce_zero_label (LoadAnnotations in the pipeline)"
        )
    return None, ""


def relabel(pixels: Pixels, table: np.ndarray | None) -> Pixels:
    """The same with other predicted labels."""
    return pixels if table is None else replace(pixels, found=table[pixels.found])


def shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy of classes, from `(..., 3)` sums; NaN for what is neither there nor predicted."""
    hits, true, found = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / (true + found - hits), np.where(true > 0, hits / true, np.nan)


class Semantic:
    """One set of predicted label maps, counted.

    Args:
        truth: Label maps.
        predictions: Theirs.

    Raises:
        InputError: As `count_pixels`.
    """

    task = "semantic"

    def __init__(self, truth: Truth, predictions: Predictions) -> None:
        self.truth = truth
        pixels, weighted = count_pixels(truth, predictions)
        table, note = read_labels(pixels, truth)
        self.notes = (note,) if note else ()
        self.pixels, self.weighted = relabel(pixels, table), relabel(weighted, table)
        names = truth.categories or _number_labels(self.pixels)
        self.names = {label: name for label, name in names.items() if label != truth.ignore_label}
        self.labels = np.array(list(self.names))
        rows = np.full(VALUES, -1)
        rows[self.labels] = np.arange(len(self.labels))
        self.rows, self.images = rows, len(truth.images)
        self.counts = self.pixels.by_class(self.images, rows, rows, len(self.labels))

    def official(self) -> dict[str, float]:
        """mIoU, mAcc, aAcc and fwIoU; ADE20K's score; Cityscapes' means over categories, and iIoU where it can be."""
        return {name: float(values[0]) for name, values in self.scores().items() if not np.isnan(values[0])}

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Numbers by name, each `(samples,)`, of the set as it is or under weights of its images."""
        weights = np.ones((1, self.images)) if weights is None else weights
        sums = _weigh(weights, self.counts)
        iou, accuracy = shares(sums)
        hits, true = sums[..., HITS].sum(1), sums[..., TRUE].sum(1)
        scores = {
            "mIoU": mean_of_defined(iou, 1),
            "mAcc": mean_of_defined(accuracy, 1),
            "aAcc": hits / true,
            "fwIoU": np.nansum(iou * sums[..., TRUE], 1) / true,
        }
        if self.truth.kind == "ade20k":
            scores["score"] = (scores["mIoU"] + scores["aAcc"]) / 2
        if self.truth.kind == "cityscapes":
            scores |= self._cityscapes_scores(weights, sums)
        return scores

    def _cityscapes_scores(self, weights: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
        group, names = _category_rows()
        of_categories = _weigh(weights, self.pixels.by_class(self.images, group, group, len(names)))
        scores = {"category_mIoU": mean_of_defined(shares(of_categories)[0], 1)}
        if not len(self.weighted.image):
            return scores
        objects = np.array([LABELS[label].has_instances for label in self.labels])
        single = _weigh(weights, self.weighted.by_class(self.images, self.rows, self.rows, len(self.labels)))
        scores["miIoU"] = mean_of_defined(_object_iou(single, sums)[:, objects], 1)
        # A category takes what is predicted as any class of it with objects, also one that is not scored.
        wide, _ = _category_rows(all_objects=True)
        single = _weigh(weights, self.weighted.by_class(self.images, group, wide, len(names)))
        of_categories = _weigh(weights, self.pixels.by_class(self.images, group, wide, len(names)))
        has_objects = np.isin(names, [label.category for label in LABELS if label.has_instances])
        scores["category_miIoU"] = mean_of_defined(_object_iou(single, of_categories)[:, has_objects], 1)
        return scores

    @cached_property
    def of_images(self) -> dict[int, float]:
        """Mean IoU of each image taken by itself, by image id."""
        values = mean_of_defined(shares(self.counts)[0], 1)
        return {image_id: float(v) for image_id, v in zip(self.truth.images, values) if not np.isnan(v)}

    def details(self, weights: np.ndarray | None, level: float) -> dict:
        """IoU and accuracy of each class, its pixels and interval; and which class is taken for which."""
        iou, accuracy = shares(self.counts.sum(0))
        resampled = None if weights is None else shares(_weigh(weights, self.counts))[0]
        classes: dict[str, dict[str, Any]] = {}
        for row, name in enumerate(self.names.values()):
            classes[name] = {
                "IoU": _or_none(iou[row]),
                "accuracy": _or_none(accuracy[row]),
                "pixels": int(self.counts[:, row, TRUE].sum()),
            }
            if resampled is not None and not np.isnan(iou[row]):
                classes[name]["interval"] = interval_of_fraction(float(iou[row]), resampled[:, row], level)
        found = {"per_class": classes, "confusion": self._confusion()}
        if self.truth.kind == "cityscapes":
            group, names = _category_rows()
            counts = self.pixels.by_class(self.images, group, group, len(names)).sum(0)
            found["per_category"] = {name: _or_none(value) for name, value in zip(names, shares(counts)[0])}
        return found

    def _confusion(self) -> dict:
        matrix = np.zeros((len(self.labels) + 1, len(self.labels) + 1))
        true = self.rows[self.pixels.true]
        np.add.at(matrix, (true[true >= 0], self.rows[self.pixels.found[true >= 0]]), self.pixels.amount[true >= 0])
        # The last column is what was predicted as no class.
        return {"labels": [*self.names.values(), "none"], "matrix": matrix.astype(np.int64)[:-1].tolist()}


def _number_labels(pixels: Pixels) -> dict[int, str]:
    """Labels without names: all up to the largest that is there or predicted, 255 apart."""
    values = np.concatenate([pixels.true, pixels.found])
    values = values[values < VALUES - 1]
    return {label: str(label) for label in range(int(values.max(initial=0)) + 1)}


def _category_rows(all_objects: bool = False) -> tuple[np.ndarray, list[str]]:
    """Row of the category of each label of Cityscapes, -1 where it is not scored; and the categories.

    Args:
        all_objects: Classes with objects have one even if they are not scored.
    """
    names = list(dict.fromkeys(label.category for label in LABELS if label.counts))
    rows = np.full(VALUES, -1)
    for label in LABELS:
        if label.counts or (all_objects and label.has_instances):
            rows[label.id] = names.index(label.category)
    return rows, names


def _object_iou(single: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """iIoU of Cityscapes: what is found and missed by weight, what is false by pixels."""
    false = pixels[..., FOUND] - pixels[..., HITS]
    with np.errstate(invalid="ignore", divide="ignore"):
        return single[..., HITS] / (single[..., TRUE] + false)


def _weigh(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over images, `(samples, classes, …)`."""
    return np.einsum("si,i...->s...", weights.astype(np.float64), counts)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""Panoptic quality, as panopticapi defines it (Kirillov et al., arXiv 1801.00868)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, read_segment_ids
from defocus_eval.progress import with_progress
from defocus_eval.scores.bootstrap import interval_of_fraction
from defocus_eval.scores.metrics import mean_of_defined

VOID = 0
# A pair of segments is one number: id of the truth · PAIR + id of the prediction.
PAIR = np.uint64(1 << 24)
IOU, TP, FP, FN = range(4)


def count_segments(predictions: Predictions, truth: Truth) -> np.ndarray:
    """Sum of IoU over matched segments, their number, false positives and false negatives, of each image and class.

    Returns:
        `(images, classes, 4)` float64, images in the order of `truth.files`, classes in that of `truth.categories`.

    Raises:
        InputError: A PNG is missing, of another size, or disagrees with the JSON.
    """
    column = {category_id: index for index, category_id in enumerate(truth.categories)}
    true_segments = {record["image_id"]: record["segments_info"] for record in truth.data["annotations"]}
    found_segments = {record["image_id"]: record["segments_info"] for record in predictions.entries["panoptic"]}
    counts = np.zeros((len(truth.files), len(column), 4))
    for row, image_id in enumerate(with_progress(truth.files, len(truth.files), "panoptic quality")):
        true_ids = read_segment_ids(truth.files[image_id])
        found_ids = read_segment_ids(predictions.files[image_id])
        if true_ids.shape != found_ids.shape:
            raise InputError(
                f"{predictions.files[image_id]} is {found_ids.shape[1]}×{found_ids.shape[0]}, its ground truth "
                f"{true_ids.shape[1]}×{true_ids.shape[0]}; write predictions at the size of the ground truth"
            )
        true = {segment["id"]: segment for segment in true_segments[image_id]}
        found = {segment["id"]: segment for segment in found_segments[image_id]}
        where = f"{predictions.path}, image {image_id} ({predictions.files[image_id].name})"
        _count_image(true_ids, found_ids, true, found, column, counts[row], where)
    return counts


def _count_image(
    true_ids: np.ndarray,
    found_ids: np.ndarray,
    true: dict[int, dict],
    found: dict[int, dict],
    column: dict[int, int],
    counts: np.ndarray,
    where: str,
) -> None:
    areas = dict(zip(*(values.tolist() for values in np.unique(found_ids, return_counts=True))))
    _check_ids(areas, found, where)
    pairs, overlaps = np.unique(true_ids.astype(np.uint64) * PAIR + found_ids, return_counts=True)
    overlap = {divmod(pair, int(PAIR)): pixels for pair, pixels in zip(pairs.tolist(), overlaps.tolist())}

    matched = set()
    for (true_id, found_id), pixels in overlap.items():
        first, second = true.get(true_id), found.get(found_id)
        if first is None or second is None or first["iscrowd"] or first["category_id"] != second["category_id"]:
            continue
        # The area of an object is what its annotation says, as in panopticapi.
        union = areas[found_id] + first["area"] - pixels - overlap.get((VOID, found_id), 0)
        if pixels / union > 0.5:
            matched |= {("true", true_id), ("found", found_id)}
            counts[column[first["category_id"]], [IOU, TP]] += (pixels / union, 1)

    crowd = {}
    for true_id, segment in true.items():
        if segment["iscrowd"]:
            crowd[segment["category_id"]] = true_id
        elif ("true", true_id) not in matched:
            counts[column[segment["category_id"]], FN] += 1
    for found_id, segment in found.items():
        if ("found", found_id) in matched:
            continue
        ignored = overlap.get((VOID, found_id), 0) + overlap.get((crowd.get(segment["category_id"]), found_id), 0)
        # What lies mostly on void or on a crowd of its class is no mistake.
        if ignored / areas[found_id] <= 0.5:
            counts[column[segment["category_id"]], FP] += 1


def _check_ids(areas: dict[int, int], found: dict[int, dict], where: str) -> None:
    unlisted = [segment_id for segment_id in areas if segment_id != VOID and segment_id not in found]
    if unlisted:
        raise InputError(f"{where}: segment {unlisted[0]} of the PNG is not in segments_info; list it, or paint it 0")
    unpainted = [segment_id for segment_id in found if segment_id not in areas]
    if unpainted:
        raise InputError(f"{where}: segment {unpainted[0]} of segments_info has no pixel in the PNG; take it out")


def quality(counts: np.ndarray) -> np.ndarray:
    """PQ, SQ and RQ of each class.

    Args:
        counts: `(..., classes, 4)` sums over images.

    Returns:
        `(..., classes, 3)`; NaN for a class that is neither there nor predicted.
    """
    iou, tp, fp, fn = np.moveaxis(counts, -1, 0)
    half = tp + 0.5 * fp + 0.5 * fn
    with np.errstate(invalid="ignore", divide="ignore"):
        recognition = np.where(half > 0, tp / half, np.nan)
        segmentation = np.where(half > 0, np.where(tp > 0, iou / tp, 0.0), np.nan)
        return np.stack([np.where(half > 0, iou / half, np.nan), segmentation, recognition], -1)


class Panoptic:
    """One set of panoptic predictions, counted.

    Args:
        truth: Panoptic annotations.
        predictions: Theirs.

    Raises:
        InputError: As `count_segments`.
    """

    task = "panoptic"
    notes = ()

    def __init__(self, truth: Truth, predictions: Predictions) -> None:
        self.truth = truth
        self.counts = count_segments(predictions, truth)
        self.images = len(self.counts)
        records = {record["id"]: record for record in truth.data["categories"]}
        self.things = np.array([bool(records[category_id]["isthing"]) for category_id in truth.categories])

    def official(self) -> dict[str, float]:
        """PQ, SQ, RQ of all classes, of things and of stuff; those that the set has."""
        return {name: float(values[0]) for name, values in self.scores().items() if not np.isnan(values[0])}

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Numbers by name, each `(samples,)`, of the set as it is or under weights of its images."""
        weights = np.ones((1, len(self.counts))) if weights is None else weights
        values = quality(np.einsum("si,icn->scn", weights.astype(np.float64), self.counts))
        everything = np.ones_like(self.things)
        return {
            f"{name}{suffix}": mean_of_defined(values[:, chosen, column], 1)
            for suffix, chosen in (("", everything), ("_th", self.things), ("_st", ~self.things))
            for column, name in enumerate(("PQ", "SQ", "RQ"))
        }

    @cached_property
    def of_images(self) -> dict[int, float]:
        """PQ of each image taken by itself, by image id."""
        values = mean_of_defined(quality(self.counts)[..., 0], 1)
        return {image_id: float(value) for image_id, value in zip(self.truth.files, values) if not np.isnan(value)}

    def details(self, weights: np.ndarray | None, level: float) -> dict:
        """PQ, SQ, RQ of each class, how many segments were found, false and missed, and the interval of PQ."""
        total = self.counts.sum(0)
        values = quality(total)
        resampled = None if weights is None else quality(np.einsum("si,icn->scn", weights * 1.0, self.counts))[..., 0]
        classes: dict[str, dict[str, Any]] = {}
        for row, name in enumerate(self.truth.categories.values()):
            numbers = [None if np.isnan(value) else float(value) for value in values[row]]
            classes[name] = {
                **dict(zip(("PQ", "SQ", "RQ"), numbers)),
                "thing": bool(self.things[row]),
                "found": int(total[row, TP]),
                "false": int(total[row, FP]),
                "missed": int(total[row, FN]),
            }
            if resampled is not None and numbers[0] is not None:
                classes[name]["interval"] = interval_of_fraction(numbers[0], resampled[:, row], level)
        return {"per_class": classes}

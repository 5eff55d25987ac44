"""Average precision of instances as Cityscapes defines it, without its distances.

It differs from COCO's: masks match above an overlap, not at it; predictions mostly on what is void, a group or too
small do not count; there is no limit of detections, and the curve is integrated in steps, not at 101 recalls.

Source: `evalInstanceLevelSemanticLabeling.py` of cityscapesScripts 2.3.0 (github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defocus_eval.errors import InputError
from defocus_eval.formats import read_label_map
from defocus_eval.formats.cityscapes import LABELS, image_key
from defocus_eval.formats.cityscapes_instances import find_text_files, read_lines, read_mask

OVERLAPS = np.arange(0.5, 1.0, 0.05)
# Pixels; smaller objects of the ground truth do not count.
SMALLEST = 100
# Ids from here on are objects, label · 1000 and a number; below are labels, of groups where a class has objects.
_FIRST_OBJECT = 1000
_SUFFIX = "_gtFine_instanceIds"
_VOID = [label.id for label in LABELS if not label.counts]


@dataclass(frozen=True)
class _Matches:
    """The predictions and objects of a class in an image.

    Attributes:
        overlaps: Intersection over union, `(predictions, objects)`.
        scores: Of the predictions.
        ignored: Part of each prediction that lies on void, groups and objects that are too small.
        counts: Whether each object counts.
    """

    overlaps: np.ndarray
    scores: np.ndarray
    ignored: np.ndarray
    counts: np.ndarray


def score_instances(predictions: Path, truth: Path) -> dict:
    """Scores instances.

    Args:
        predictions: Folder of text files and masks.
        truth: Folder with the `*_gtFine_instanceIds.png`, searched with its subfolders.

    Returns:
        `AP` (mean over classes and overlaps of 0.5 to 0.95), `AP50`, and both by class in `per_class`; not a number
        where the ground truth has no object of the class.

    Raises:
        InputError: There is no ground truth, or an image has no predictions, or broken ones.
    """
    files = {image_key(file.stem): file for file in sorted(truth.rglob(f"*{_SUFFIX}.png"))}
    if not files:
        raise InputError(f"{truth} holds no *{_SUFFIX}.png; give the folder gtFine of Cityscapes' ground truth")
    answers, _ = find_text_files(predictions, files)
    classes = {label.id: label.name for label in LABELS if label.has_instances and label.counts}
    matches: dict[int, list[_Matches]] = {label: [] for label in classes}
    for frame, file in files.items():
        objects = read_label_map(file)
        lines = read_lines(answers[frame])
        for label, found in matches.items():
            masks = [(line.score, read_mask(line, *objects.shape)) for line in lines if line.label == label]
            found.append(_match(label, masks, objects))
    table = np.array([[_average_precision(found, overlap) for overlap in OVERLAPS] for found in matches.values()])
    return {
        "AP": _mean(table),
        "AP50": _mean(table[:, 0]),
        "per_class": {
            name: {"AP": float(row.mean()), "AP50": float(row[0])} for name, row in zip(classes.values(), table)
        },
    }


def _mean(values: np.ndarray) -> float:
    """Mean of the numbers; not a number where there are none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _match(label: int, predictions: list[tuple[float, np.ndarray]], objects: np.ndarray) -> _Matches:
    ids, areas = np.unique(objects, return_counts=True)
    own = (ids // _FIRST_OBJECT == label) | (ids == label)
    grouped = ids < _FIRST_OBJECT
    counts = own & ~grouped & (areas >= SMALLEST)
    # An id of the void is a label; objects of classes that are not scored are no void here.
    void = np.isin(ids, _VOID)
    # A group that is also too small is subtracted twice, as the board does it.
    weights = void.astype(int) + (own & grouped) + (own & (areas < SMALLEST))
    overlaps, scores, ignored = [], [], []
    for score, mask in predictions:
        pixels = np.count_nonzero(mask)
        if not pixels:
            continue
        inside = np.zeros(len(ids), np.int64)
        present, amounts = np.unique(objects[mask], return_counts=True)
        inside[np.searchsorted(ids, present)] = amounts
        overlaps.append((inside / (areas + pixels - inside))[own])
        ignored.append((inside * weights).sum() / pixels)
        scores.append(score)
    return _Matches(
        np.array(overlaps).reshape(len(scores), np.count_nonzero(own)), np.array(scores), np.array(ignored), counts[own]
    )


def _average_precision(found: list[_Matches], threshold: float | np.floating) -> float:
    """Area below the curve of precision over recall; not a number without an object that counts."""
    best, others, missed, objects = [], [], 0, 0
    for image in found:
        objects += np.count_nonzero(image.counts)
        hits = image.overlaps > threshold
        for column in np.flatnonzero(image.counts):
            scores = image.scores[hits[:, column]]
            if len(scores):
                # The best of several is right, the others are wrong.
                order = np.sort(scores)
                best.append(order[-1:])
                others.append(order[:-1])
            else:
                missed += 1
        others.append(image.scores[~hits.any(1) & (image.ignored <= threshold)])
    if not objects:
        return float("nan")
    right, wrong = np.sort(np.concatenate([*best, []])), np.sort(np.concatenate([*others, []]))
    if not len(right):
        return 0.0
    thresholds = np.unique(np.concatenate((right, wrong)))
    true = len(right) - np.searchsorted(right, thresholds)
    false = len(wrong) - np.searchsorted(wrong, thresholds)
    precision = true / (true + false)
    recall = true / (len(right) + missed)
    # The curve is drawn on to a precision of 1 at a recall of 0; each point stands for half the way to its neighbours.
    precision = np.append(precision, 1.0)
    recall = np.concatenate((recall[:1], recall, [0.0, 0.0]))
    return float(precision @ (recall[:-2] - recall[2:])) / 2

"""What the mistakes are: error types, confusion, calibration, curves, scores of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from defocus_eval.scores.bootstrap import interval_of_fraction
from defocus_eval.scores.detection import Detection
from defocus_eval.scores.matching import AREAS, BITS
from defocus_eval.scores.metrics import mean_of_defined

# IoU at which an object counts as found, where one must be chosen.
FOUND = 0.5
# The error types of TIDE (Bolya et al., arXiv 2008.08115), and what hotcoco calls them.
ERRORS = {
    "classification": "Cls",
    "localisation": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
# Larger confusion matrices are given as their largest entries alone.
LARGEST_MATRIX = 150
CONFUSIONS = 20
SCORE_STEPS = np.round(np.arange(0, 1, 0.02), 2)


def class_names(detection: Detection) -> list[str]:
    """A name of its own for each class, in the order of the columns."""
    names = [detection.truth.categories[category_id] for category_id in detection.columns.category_ids]
    return [
        name if names.count(name) == 1 else f"{name} ({category_id})"
        for name, category_id in zip(names, detection.columns.category_ids)
    ]


def of_classes(detection: Detection, weights: np.ndarray | None, level: float) -> dict[str, dict]:
    """AP of each class, in all and by size, its interval, how many objects there are, and its best score to cut at."""
    accumulated = detection.accumulated(None, detection.most)
    resampled = None if weights is None else detection.accumulated(weights, detection.most)
    present = detection.matches.objects.category[detection.matches.wanted[0]]
    objects = np.bincount(present, minlength=detection.matches.categories)
    classes: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(class_names(detection)):
        precision = accumulated.precision[:, :, column, 0]
        averages = mean_of_defined(precision, 1)
        found = {
            "AP": averages[0],
            "AP50": precision[0, 0],
            "AP75": precision[0, 5],
            **{f"AP{size[0]}": averages[index] for index, size in enumerate(AREAS) if index},
            "AR": mean_of_defined(accumulated.recall[0, :, column], 0)[0],
        }
        classes[name] = {key: -1.0 if np.isnan(value) else float(value) for key, value in found.items()}
        classes[name]["objects"] = int(objects[column])
        if detection.lvis:
            classes[name]["frequency"] = str(detection.frequencies[column])
        if resampled is not None and objects[column]:
            values = mean_of_defined(resampled.precision[0, :, column], 0)
            classes[name]["interval"] = interval_of_fraction(float(averages[0]), values, level)
        classes[name] |= _best_cut(detection, column, int(objects[column]))
    return classes


def _found_at(detection: Detection, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Scores of detections that count at IoU `FOUND`, best first, and whether they find an object."""
    matches = detection.matches
    counts = (matches.ignored[0, rows] & BITS[0]) == 0
    if detection.most is not None:
        counts &= matches.rank[rows] < detection.most
    score = matches.found.score[rows][counts]
    hit = (matches.matched[0, rows][counts] & BITS[0]) > 0
    order = np.argsort(-score, kind="stable")
    return score[order], hit[order]


def _best_cut(detection: Detection, column: int, objects: int) -> dict[str, float]:
    rows = slice(*detection.matches.starts[column : column + 2])
    score, hit = _found_at(detection, rows)
    if not objects or not hit.any():
        return {}
    harmonic = 2 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + objects)
    # One cannot cut between equal scores.
    harmonic[:-1][score[1:] == score[:-1]] = 0
    best = int(harmonic.argmax())
    return {"F1": float(harmonic[best]), "score_of_F1": float(score[best])}


def error_types(detection: Detection) -> dict[str, Any]:
    """TIDE's error types at IoU 0.5: how many there are, and how much AP50 would gain without them."""
    found = detection.evaluator.tide_errors(pos_thr=FOUND)
    return {
        "AP50": float(found["ap_base"]),
        "types": {
            name: {"count": int(found["counts"][key]), "AP50_gain": float(found["delta_ap"][key])}
            for name, key in ERRORS.items()
        },
        "false_positives_gain": float(found["delta_ap"]["FP"]),
        "false_negatives_gain": float(found["delta_ap"]["FN"]),
    }


def calibration(detection: Detection, bins: int = 10) -> dict[str, Any] | None:
    """How far scores are shares of true detections; None where they do not lie between 0 and 1."""
    scores = detection.matches.found.score
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    found = detection.evaluator.calibration(n_bins=bins, iou_threshold=FOUND)
    return {
        "expected_error": float(found["ece"]),
        "largest_error": float(found["mce"]),
        "bins": [
            {
                "low": float(entry["bin_lower"]),
                "high": float(entry["bin_upper"]),
                "score": float(entry["avg_confidence"]),
                "true": float(entry["avg_accuracy"]),
                "count": int(entry["count"]),
            }
            for entry in found["bins"]
        ],
    }


def confusion(detection: Detection, score: float) -> dict[str, Any]:
    """Which class is taken for which at IoU 0.5 among detections of at least ``score``; the last is the background."""
    found = detection.evaluator.confusion_matrix(iou_thr=FOUND, min_score=score)
    column = {category_id: index for index, category_id in enumerate(detection.columns.category_ids)}
    names = class_names(detection)
    order = np.argsort([column[category_id] for category_id in found["cat_ids"]])
    order = np.append(order, len(order))
    matrix = np.asarray(found["matrix"])[np.ix_(order, order)].astype(int)
    objects = matrix.sum(1)
    mixed = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    largest = np.argsort(-mixed, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(index), len(names)) for index in largest]
    result = {
        "score": score,
        "iou": FOUND,
        "largest": [
            {
                "object": names[i],
                "taken_for": names[j],
                "count": int(mixed[i, j]),
                "share": float(mixed[i, j] / objects[i]),
            }
            for i, j in pairs
            if mixed[i, j]
        ],
    }
    if len(names) <= LARGEST_MATRIX:
        result |= {"labels": [*names, "background"], "matrix": matrix.tolist()}
    return result


def curves(detection: Detection) -> dict[str, Any]:
    """Precision over recall, the mean of the classes; precision, recall and F1 over the score one cuts at."""
    arrays = detection.evaluator.eval
    assert arrays is not None, "the library has accumulated nothing"
    precision = arrays["precision"][:, :, :, 0, -1]
    defined = precision[:, :, (precision > -1).any((0, 1))]
    score, hit = _found_at(detection, slice(None))
    objects = int(detection.matches.wanted[0].sum())
    cuts = np.searchsorted(-score, -SCORE_STEPS, side="right")
    found = np.concatenate([[0], np.cumsum(hit)])[cuts]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            "precision": np.where(cuts > 0, found / cuts, 1.0),
            "recall": found / objects,
            "F1": 2 * found / (cuts + objects),
        }
    best = int(np.argmax(shares["F1"]))
    return {
        "precision_recall": {
            "recall": np.linspace(0, 1, 101).round(2).tolist(),
            "mean": defined.mean((0, 2)).round(4).tolist(),
            "iou_0.50": defined[0].mean(1).round(4).tolist(),
            "iou_0.75": defined[5].mean(1).round(4).tolist(),
        },
        "score": {
            "at_least": SCORE_STEPS.tolist(),
            **{name: values.round(4).tolist() for name, values in shares.items()},
            "best_F1": {"at_least": float(SCORE_STEPS[best]), "F1": float(shares["F1"][best])},
        },
    }


def details(detection: Detection, weights: np.ndarray | None, level: float) -> dict[str, Any]:
    """All of the above, as far as the task has it."""
    found: dict[str, Any] = {
        "objects": {area: int(wanted.sum()) for area, wanted in zip(AREAS, detection.matches.wanted)},
        "detections": len(detection.source),
        "per_class": of_classes(detection, weights, level),
    }
    # The library has no boundaries; without objects there is nothing to analyse.
    if detection.task != "boundary" and found["objects"]["all"]:
        found["curves"] = curves(detection)
        found["errors"] = error_types(detection)
        found["confusion"] = confusion(detection, found["curves"]["score"]["best_F1"]["at_least"])
        found["calibration"] = calibration(detection)
    return found

"""Scores predictions against ground truth: official numbers, intervals, analyses, and what changed from another run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from defocus_eval import trainers
from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, read_predictions, read_truth
from defocus_eval.formats.label_maps import CITYSCAPES_SUFFIX
from defocus_eval.markdown import to_markdown
from defocus_eval.scores import analysis, bootstrap, cityscapes_instances
from defocus_eval.scores.detection import Detection
from defocus_eval.scores.metrics import FIXED_MOST, MMDET_MOST
from defocus_eval.scores.panoptic import Panoptic
from defocus_eval.scores.semantic import Semantic

__all__ = ["TASKS", "evaluate", "to_markdown"]

TASKS = ("bbox", "segm", "boundary", "panoptic", "semantic", "instances")
# Images told of a comparison, half that gained most and half that lost most.
CHANGED = 20
Scorer = Detection | Panoptic | Semantic


def evaluate(
    predictions: str | Path,
    annotations: str | Path,
    against: str | Path | None = None,
    *,
    tasks: Sequence[str] | None = None,
    samples: int = 200,
    seed: int = 0,
    level: float = bootstrap.LEVEL,
    predictions_folder: str | Path | None = None,
    annotations_folder: str | Path | None = None,
    against_folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    ignore_label: int = 255,
) -> dict[str, Any]:
    """Scores predictions.

    Args:
        predictions: File or folder of a trainer, or mmdet's `outfile_prefix`.
        annotations: Ground truth, a JSON file or a folder of label maps.
        against: Predictions of another run on the same images.
        tasks: Which of `TASKS` to score; all that the predictions answer by default.
        samples: Resampled sets of images for intervals; 0 for none.
        seed: Of the resampling.
        level: Share of the resampled scores inside an interval.
        predictions_folder: PNGs of panoptic predictions, where they lie at none of the usual places.
        annotations_folder: The same of the ground truth.
        against_folder: The same of the other run.
        classes: Names of labels, for label maps.
        ignore_label: The label that does not count, for label maps that are neither Cityscapes nor ADE20K.

    Returns:
        `about`, and by task the official numbers as fractions (-1 where there is nothing to find, as pycocotools has
        it), `intervals`, `per_class`, `images` (score of each image by itself, by id) and the analyses of the task;
        with ``against`` also `against`: `scores`, `differences` (this run less the other) and `changed_images`.

    Raises:
        InputError: A file is missing, broken, of no known kind, or the files do not belong together.
    """
    _check_numbers(tasks, samples, level)
    truth = read_truth(annotations, annotations_folder, classes, ignore_label)
    if truth.kind == "images":
        raise InputError(
            f"{truth.path} lists images without annotations, so nothing can be scored here; "
            "give a set with annotations, or pack the predictions for its server (defocus submit)"
        )
    if truth.kind == "cityscapes" and _holds_instances(Path(predictions)):
        return _score_instances(Path(predictions), truth, against)
    first = read_predictions(predictions, truth, predictions_folder)
    scorers = _scorers(truth, first, tasks)
    second = None if against is None else read_predictions(against, truth, against_folder)
    others = {} if second is None else _scorers(truth, second, tasks)
    if second is not None and not set(scorers) & set(others):
        raise InputError(
            f"{predictions} holds {', '.join(scorers)}, {against} {', '.join(others)}; give two of the same task"
        )
    result: dict[str, Any] = {
        "about": {
            "predictions": str(predictions),
            "annotations": str(annotations),
            "kind": truth.kind,
            "writer": first.writer,
            "images": len(truth.files or truth.images),
            "notes": [*truth.notes, *first.notes, *_set_notes(truth)],
            "samples": samples,
            "seed": seed,
            "level": level,
            "versions": {name: version(name) for name in ("hotcoco", "numpy", "pycocotools")},
        }
    }
    if second is not None:
        result["about"] |= {"against": str(against), "against_writer": second.writer}
    for task, scorer in scorers.items():
        weights = bootstrap.draw_weights(scorer.images, samples, seed) if samples else None
        result[task], resampled = _score(scorer, first, weights, level)
        result["about"]["notes"] += scorer.notes
        if task in others:
            result[task]["against"] = _compare(scorer, result[task], resampled, others[task], weights, level)
    return result


def _check_numbers(tasks: Sequence[str] | None, samples: int, level: float) -> None:
    strange = [task for task in tasks or () if task not in TASKS]
    if strange:
        raise InputError(f"there is no task {strange[0]}; name some of {', '.join(TASKS)}")
    if samples < 0:
        raise InputError(f"samples must not be negative, got {samples}; 200 are a good number, 0 gives no intervals")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")


def _set_notes(truth: Truth) -> list[str]:
    if truth.kind not in ("instances", "lvis") or all(record["id"] > 0 for record in truth.data["annotations"]):
        return []
    return [
        f"{truth.path.name} has an annotation of id 0: pycocotools takes what finds it for a false detection, and so "
        "do these scores; number annotations from 1"
    ]


def _scorers(truth: Truth, predictions: Predictions, tasks: Sequence[str] | None) -> dict[str, Scorer]:
    offered = [task for kind in predictions.kind for task in ((kind, "boundary") if kind == "segm" else (kind,))]
    chosen = [task for task in offered if tasks is None or task in tasks]
    if not chosen:
        raise InputError(f"{predictions.path} answers {', '.join(offered)}, not {', '.join(tasks or ())}")
    scorers: dict[str, Scorer] = {}
    for task in chosen:
        if task == "panoptic":
            scorers[task] = Panoptic(truth, predictions)
        elif task == "semantic":
            scorers[task] = Semantic(truth, predictions)
        else:
            entries = predictions.entries["bbox" if task == "bbox" else "segm"]
            # As many as its log counts, to say what it says.
            most = MMDET_MOST[-1] if predictions.writer == "mmdet" and truth.kind == "instances" else None
            scorers[task] = Detection(truth, entries, task, most)
    return scorers


def _score(
    scorer: Scorer, predictions: Predictions, weights: np.ndarray | None, level: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The result of a task, and its scores under the weights."""
    official = scorer.official()
    resampled = {} if weights is None else scorer.scores(weights)
    result: dict[str, Any] = {**official}
    if resampled:
        result["intervals"] = {
            name: bootstrap.interval_of_fraction(score, resampled[name], level)
            for name, score in official.items()
            if score >= 0
        }
    if isinstance(scorer, Detection):
        result |= analysis.details(scorer, weights, level)
        result["elsewhere"] = trainers.of_detection(scorer, predictions)
        if scorer.lvis and scorer.task != "boundary":
            result |= _fixed(scorer, predictions)
    else:
        result |= scorer.details(weights, level)
        if isinstance(scorer, Semantic):
            result["elsewhere"] = trainers.of_semantic(scorer, predictions)
    result["images"] = {str(image_id): score for image_id, score in scorer.of_images.items()}
    return result, resampled


def _fixed(scorer: Detection, predictions: Predictions) -> dict[str, Any]:
    """AP-fixed: as many detections of a class as it counts, however many of an image."""
    entries = predictions.entries[scorer.task]
    scores = Detection(scorer.truth, entries, scorer.task, most_of_class=FIXED_MOST).official()
    return {
        "fixed": {name: score for name, score in scores.items() if name.startswith("AP")},
        # A file cut to the official number of an image cannot show what the model finds without that cut.
        "most_of_image": max(Counter(entry["image_id"] for entry in entries).values()),
    }


def _compare(
    scorer: Scorer,
    result: dict[str, Any],
    resampled: dict[str, np.ndarray],
    other: Scorer,
    weights: np.ndarray | None,
    level: float,
) -> dict[str, Any]:
    """This run less the other one, image by image: both see the same resampled sets."""
    scores = other.official()
    other_resampled = {} if weights is None else other.scores(weights)
    differences = {}
    for name, score in scores.items():
        if score < 0 or result.get(name, -1) < 0:
            continue
        difference = {"difference": result[name] - score}
        if resampled:
            apart = resampled[name] - other_resampled[name]
            difference["interval"] = bootstrap.interval(difference["difference"], apart, level)
            # Half of the ties: neither is better.
            difference["share_better"] = float(np.mean((apart > 0) + 0.5 * (apart == 0)))
        differences[name] = difference
    main = "AP" if isinstance(scorer, Detection) else "PQ" if isinstance(scorer, Panoptic) else "IoU"
    if isinstance(other, Detection):
        classes = analysis.of_classes(other, None, level)
    else:
        classes = other.details(None, level)["per_class"]
    per_class = {}
    for name, numbers in result["per_class"].items():
        first, second = numbers[main], classes[name][main]
        if first is not None and second is not None and min(first, second) >= 0:
            per_class[name] = first - second
    return {
        "scores": scores,
        "differences": differences,
        "per_class": per_class,
        "changed_images": _changed_images(scorer, other),
    }


def _changed_images(scorer: Scorer, other: Scorer) -> list[dict[str, Any]]:
    """The images that gained most and lost most, the largest change first."""
    changes = [
        (score - other.of_images[image_id], image_id)
        for image_id, score in scorer.of_images.items()
        if image_id in other.of_images and score != other.of_images[image_id]
    ]
    changes.sort(key=lambda change: (-change[0], change[1]))
    half = CHANGED // 2
    chosen = changes if len(changes) <= CHANGED else changes[:half] + changes[-half:]
    return [
        {
            "image_id": image_id,
            "file_name": scorer.truth.images[image_id].get("file_name", ""),
            "score": scorer.of_images[image_id],
            "other": other.of_images[image_id],
            "difference": difference,
        }
        for difference, image_id in sorted(chosen, key=lambda change: (-abs(change[0]), change[1]))
    ]


def _holds_instances(folder: Path) -> bool:
    """The folder holds text files of Cityscapes' instances."""
    return folder.is_dir() and next(folder.rglob("*_*.txt"), None) is not None


def _score_instances(predictions: Path, truth: Truth, against: str | Path | None) -> dict[str, Any]:
    folder = truth.path
    result: dict[str, Any] = {
        "about": {
            "predictions": str(predictions),
            "annotations": str(folder),
            "kind": truth.kind,
            "writer": "unknown",
            "images": len(truth.images),
            "notes": [f"read as instances; label maps would be found by their ground truth, *{CITYSCAPES_SUFFIX}.png"],
        },
        "instances": _without_nan(cityscapes_instances.score_instances(predictions, folder)),
    }
    if against is not None:
        other = _without_nan(cityscapes_instances.score_instances(Path(against), folder))
        result["about"]["against"] = str(against)
        differences = {
            name: {"difference": result["instances"][name] - other[name]}
            for name in ("AP", "AP50")
            if None not in (result["instances"][name], other[name])
        }
        scores = {name: other[name] for name in ("AP", "AP50")}
        result["instances"]["against"] = {"scores": scores, "differences": differences}
    return result


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

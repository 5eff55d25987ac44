"""A page for a run, or for two of them: evaluates, chooses images, and gathers what is known of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from defocus_eval.evaluate import evaluate
from defocus_eval.files import write_text
from defocus_eval.formats import Truth, read_predictions, read_truth
from defocus_eval.logs import read_logs
from defocus_eval.pages import charts, gallery, provenance
from defocus_eval.pages.provenance import RunFiles
from defocus_eval.pages.render import render_page
from defocus_eval.pages.summary import build_part
from defocus_eval.pages.terms import TITLES

# By which task images are ranked and drawn, where there are several.
GALLERY_TASKS = {"segm": "AP", "bbox": "AP", "panoptic": "PQ", "semantic": "mIoU"}


@dataclass(frozen=True)
class Question:
    """What a page is about.

    Attributes:
        runs: One run, or the one to compare with and then the run.
        annotations: Ground truth.
        images: Folder of the images; without it no images are shown.
        title: Of the page; the run's name by default.
        folders: Of the PNGs of panoptic predictions, a run each, where they are not where trainers leave them.
        annotations_folder: The same of the ground truth.
        classes: Names of labels, for label maps.
        ignore_label: The label that does not count, for label maps.
        samples: Resampled sets of images for intervals.
        images_shown: In each tab.
    """

    runs: Sequence[RunFiles]
    annotations: Path
    images: Path | None = None
    title: str | None = None
    folders: Sequence[Path | None] = (None, None)
    annotations_folder: Path | None = None
    classes: Sequence[str] | None = None
    ignore_label: int = 255
    samples: int = 200
    images_shown: int = 12


def write_page(question: Question, out: str | Path, command: Sequence[str]) -> dict[str, Any]:
    """Writes a page.

    Args:
        question: What it is about.
        out: HTML file.
        command: What was typed, for the page to tell.

    Returns:
        The evaluation of the run, as `evaluate` gives it.

    Raises:
        InputError: A file is missing, broken, or does not belong to the others.
    """
    # What is read in a moment comes first: a mistake there must not cost an evaluation.
    logs = [read_logs(run.logs) for run in question.runs]
    files = _origin(question, command)
    configs = [
        {"title": f"Config of {run.name}", "text": provenance.config_text(run.config)}
        for run in question.runs
        if run.config
    ]
    evaluations = _evaluate(question)
    names = [run.name for run in question.runs]
    about = evaluations[-1]["about"]
    tasks = [task for task in TITLES if all(task in evaluation for evaluation in evaluations)]
    parts = [build_part(task, [evaluation[task] for evaluation in evaluations], names, about) for task in tasks]
    shown = _gallery(question, tasks, evaluations)
    curves, sentence = charts.training(logs, names)
    page = {
        "title": question.title or names[-1],
        "subtitle": _subtitle(question, evaluations[-1], tasks),
        "runs": [
            {"name": run.name, "writer": evaluation["about"]["writer"].replace("unknown", "")}
            for run, evaluation in zip(question.runs, evaluations)
        ],
        "parts": parts,
        "gallery": shown and _gallery_words(shown),
        "training": {"charts": curves, "explanation": sentence} if curves else None,
        "origin": files,
        "notes": about["notes"],
        "configs": configs,
        "made": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }
    html = render_page(page, [*(chart for part in parts for chart in part["charts"]), *curves], shown)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return evaluations[-1]


def _evaluate(question: Question) -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "annotations_folder": question.annotations_folder,
        "classes": question.classes,
        "ignore_label": question.ignore_label,
    }
    *before, run = question.runs
    folders = list(question.folders)[: len(question.runs)]
    found = []
    for other, folder in zip(before, folders):
        found.append(evaluate(other.predictions, question.annotations, samples=0, predictions_folder=folder, **common))
    against: dict[str, Any] = {"against": before[0].predictions, "against_folder": folders[0]} if before else {}
    found.append(
        evaluate(
            run.predictions,
            question.annotations,
            samples=question.samples,
            predictions_folder=folders[-1],
            **against,
            **common,
        )
    )
    return found


def _gallery(question: Question, tasks: Sequence[str], evaluations: Sequence[dict]) -> dict[str, Any] | None:
    task = next((task for task in GALLERY_TASKS if task in tasks), None)
    if task is None or question.images is None:
        return None
    truth = _truth(question, evaluations[-1][task])
    folders = list(question.folders)
    runs = [read_predictions(run.predictions, truth, folder) for run, folder in zip(question.runs, folders)]
    values = [{int(i): score for i, score in evaluation[task]["images"].items()} for evaluation in evaluations]
    tabs = gallery.choose_images(values, gallery.count_objects(truth), question.images_shown)
    names = [run.name for run in question.runs]
    shown = gallery.build_gallery(truth, runs, names, question.images, tabs, values, GALLERY_TASKS[task])
    scores = [evaluation[task].get("curves", {}).get("score") for evaluation in evaluations]
    if all(scores):
        shown["effects"] = [
            {"name": name, "points": list(zip(score["at_least"], score["precision"], score["recall"]))}
            for name, score in zip(names, scores)
        ]
        shown["first_score"] = max(gallery.LOWEST_SCORE, scores[-1]["best_F1"]["at_least"])
    return shown


def _truth(question: Question, result: dict) -> Truth:
    truth = read_truth(question.annotations, question.annotations_folder, question.classes, question.ignore_label)
    if not truth.categories:
        # Label maps without names: the evaluation numbered them.
        truth = replace(truth, categories={int(name): name for name in result["per_class"]})
    return truth


def _gallery_words(shown: dict[str, Any]) -> dict[str, Any]:
    if "panels" in shown:
        explanation = "Ground truth beside predictions, each class in its colour."
        return {"kind": "layers", "explanation": explanation, "panels": len(shown["panels"])}
    return {
        "kind": "objects",
        "explanation": "Ground truth beside predictions. Dashed: an object that is missed, a prediction that finds "
        "nothing of its class at an IoU of 0.5. Precision and recall are of the whole set. Where there are many boxes, "
        "labels show at the one that is pointed at, or once the image is enlarged.",
        "panels": 1 + len(shown["runs"]),
        "masks": shown["masks"],
        "lowest_score": gallery.LOWEST_SCORE,
        "first_score": shown.get("first_score", 0.3),
    }


def _subtitle(question: Question, evaluation: dict, tasks: Sequence[str]) -> str:
    result = evaluation[tasks[0]]
    words = [f"{evaluation['about']['images']:,} images"]
    if "objects" in result:
        words.append(f"{result['objects']['all']:,} objects")
    if result.get("per_class"):
        words.append(f"{len(result['per_class'])} classes")
    # A folder's own name, "val" for one, says little.
    parts = question.annotations.parts[-2:] if question.annotations.is_dir() else question.annotations.parts[-1:]
    return f"{', '.join(words)} of {'/'.join(parts)}"


def _origin(question: Question, command: Sequence[str]) -> list[dict[str, Any]]:
    groups = [{"title": run.name, "facts": provenance.run_facts(run)} for run in question.runs]
    facts = provenance.common_facts(question.annotations, question.images, command)
    return [*groups, {"title": "Ground truth and machine", "facts": facts}]

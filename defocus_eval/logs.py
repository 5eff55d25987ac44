"""Training logs of mmengine and Detectron2: losses, scores and times by iteration, also of a run that was resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from defocus_eval.errors import InputError

# How scores are called in pictures, by the name that mmengine's logs have after their last slash.
METRICS = {
    "bbox_mAP": "box AP",
    "bbox_mAP_50": "box AP50",
    "segm_mAP": "mask AP",
    "segm_mAP_50": "mask AP50",
    "PQ": "PQ",
    "mIoU": "mIoU",
}
# In hundredths, whoever wrote it.
HUNDREDTHS = {"PQ", "mIoU"}
# Detectron2 says these in hundredths.
DETECTRON2_METRICS = {
    "bbox/AP": "bbox_mAP",
    "bbox/AP50": "bbox_mAP_50",
    "segm/AP": "segm_mAP",
    "segm/AP50": "segm_mAP_50",
}
_CURE = "give the vis_data/scalars.json of an mmengine run, or the metrics.json of a Detectron2 run"


class Evaluation(NamedTuple):
    """One evaluation in a log.

    Attributes:
        iteration: The last training iteration known to lie before it.
        epoch: Epochs trained, or None where the log counts iterations.
        scores: As fractions, by key of `METRICS`.
    """

    iteration: int
    epoch: int | None
    scores: dict[str, float]


class Run(NamedTuple):
    """What a log says.

    Attributes:
        losses: Total training loss by iteration.
        evaluations: In order.
        seconds: Time of a training step by iteration.
    """

    losses: dict[int, float]
    evaluations: list[Evaluation]
    seconds: dict[int, float]


def read_logs(paths: Iterable[str | Path]) -> Run:
    """One history of a run and those resumed from it, whatever their order.

    From the first step of a resumed run on, its log replaces what an earlier one says.

    Args:
        paths: `scalars.json` of mmengine or `metrics.json` of Detectron2.

    Raises:
        InputError: A file cannot be read or is no such log.
    """
    return merge_runs([read_log(path) for path in paths])


def read_log(path: str | Path) -> Run:
    """Reads a `scalars.json` of mmengine or a `metrics.json` of Detectron2.

    In the former, the step of a training line is its iteration. That of an evaluation is the epoch in epoch-based
    training, the iteration in iteration-based training, and there 0 if the logger hook was left at
    `log_metric_by_epoch=True`. An iteration cannot lie before that of the training line above it, which tells the
    three apart. In the latter, all lines count iterations, and one may be of training and evaluation at once.

    Raises:
        InputError: The file cannot be read or is no such log.
    """
    run = Run({}, [], {})
    iteration, epoch = 0, None
    for record in _read_lines(Path(path)):
        step = record.get("step", record.get("iter", record.get("iteration")))
        if step is None:
            continue
        loss = record.get("loss", record.get("train/loss", record.get("total_loss")))
        if loss is not None:
            iteration, epoch = step, record.get("epoch")
            if math.isfinite(loss):
                run.losses[step] = loss
            if "time" in record:
                run.seconds[step] = record["time"]
        scores = _scores_of(record)
        if scores:
            by_epoch = epoch is not None and step < iteration
            run.evaluations.append(Evaluation(max(iteration, step), step if by_epoch else None, scores))
    if not run.losses and not run.evaluations:
        raise InputError(f"{path} holds neither finite training losses nor COCO evaluations, PQ or mIoU; {_CURE}")
    return run


def merge_runs(runs: Sequence[Run]) -> Run:
    """One history of a run and those resumed from it, whatever their order."""

    def first_step(run: Run) -> int:
        return min([*run.losses, *(evaluation.iteration for evaluation in run.evaluations)])

    merged = Run({}, [], {})
    for run in sorted(runs, key=first_step):
        start = first_step(run)
        repeated = {evaluation.iteration for evaluation in run.evaluations}
        # A resumed run evaluates again only what lies behind its first step.
        kept = [e for e in merged.evaluations if e.iteration <= start and e.iteration not in repeated]
        losses, seconds = (
            {step: value for step, value in values.items() if step < start}
            for values in (merged.losses, merged.seconds)
        )
        merged = Run({**losses, **run.losses}, [*kept, *run.evaluations], {**seconds, **run.seconds})
    return merged


def smooth(values: Sequence[float]) -> np.ndarray:
    """Running mean over a fifteenth of the values, at least three; at the ends over those that are there: `(n,)`."""
    window = np.ones(min(len(values), max(3, len(values) // 15)))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _read_lines(path: Path) -> list[dict]:
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {_CURE}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; {_CURE}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty; {_CURE}")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            # A run that was killed may leave half a line.
            if number == len(lines) > 1:
                break
            raise InputError(f"{path}, line {number} is not JSON ({error}); {_CURE}") from error
        kind = type(record).__name__
        if kind != "dict":
            raise InputError(f"{path}, line {number} holds a {kind}, not an object; {_CURE}")
        records.append(record)
    return records


def _scores_of(record: dict) -> dict[str, float]:
    scores = {}
    for key, value in record.items():
        metric = DETECTRON2_METRICS.get(key, key.rsplit("/", 1)[-1])
        if metric not in METRICS:
            continue
        # Detectron2 says NaN where there is nothing to find, COCO evaluation -1.
        if math.isfinite(value) and value >= 0:
            scores[metric] = value / 100 if key in DETECTRON2_METRICS or metric in HUNDREDTHS else value
    return scores

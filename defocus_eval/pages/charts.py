"""Charts of a page as plain data: the page's script draws them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from defocus_eval.logs import METRICS, Run, smooth

MOST_POINTS = 400
# Variables of the style sheet: first run, second run, and what is drawn beside them.
RUN_COLORS = ("a", "b")
METRIC_COLORS = ("a", "b", "good", "bad", "ink", "soft")


@dataclass(frozen=True)
class Chart:
    """A chart and the words around it.

    Attributes:
        key: What the page and the data call it.
        title: Above it.
        caption: Below it.
        description: For those who cannot see it.
        x: Name of the axis and its range.
        y: The same.
        series: Name, colour (a variable of the style sheet), points; `dashed` and `faint` where it is.
        diagonal: Draw the line on which both axes are equal.
    """

    key: str
    title: str
    caption: str
    description: str
    x: tuple[str, tuple[float, float]]
    y: tuple[str, tuple[float, float]]
    series: list[dict[str, Any]]
    diagonal: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What the script needs."""
        axes = {axis: {"name": name, "range": limits} for axis, (name, limits) in (("x", self.x), ("y", self.y))}
        return {**axes, "series": self.series, "diagonal": self.diagonal}


def line(name: str, color: str, xs: Sequence[float], ys: Sequence[float], **style: bool) -> dict[str, Any]:
    """A line of a chart, of `MOST_POINTS` points at most; values that are not finite are left out."""
    pairs = [(x, y) for x, y in zip(xs, ys) if y is not None and math.isfinite(x) and math.isfinite(y)]
    if len(pairs) > MOST_POINTS:
        kept = np.unique(np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int))
        pairs = [pairs[i] for i in kept]
    points = [[_short(x), _short(y)] for x, y in pairs]
    return {"name": name, "color": color, "points": points, **style}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def training(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Chart], str]:
    """Charts of losses and of scores on the way, and a sentence about the training.

    Args:
        runs: Logs of each run; a run without one is empty.
        names: What the runs are called.
    """
    charts = [chart for chart in (_losses(runs, names), _evaluations(runs, names)) if chart]
    words = []
    for run, name in zip(runs, names):
        if not run.losses:
            continue
        text = f"{max(run.losses):,} iterations"
        if run.seconds:
            text += f", {statistics.median(run.seconds.values()):.2f} s each (median)"
        words.append(f"{name}: {text}" if len(names) > 1 else text)
    return charts, "; ".join(words) + "." if words else ""


def _losses(runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    series, steps, values = [], [], []
    for run, name, color in zip(runs, names, RUN_COLORS):
        if not run.losses:
            continue
        xs, ys = list(run.losses), list(run.losses.values())
        smoothed = smooth(ys).tolist()
        series.append(line(f"{name}, logged", color, xs, ys, faint=True))
        series.append(line(f"{name}, smoothed", color, xs, smoothed))
        steps += xs
        # The first steps' losses may be so large that nothing is seen of the rest.
        values += [*smoothed, *np.quantile(ys, (0.01, 0.98)).tolist()]
    if not series:
        return None
    limits = (min(0.0, min(values)), 1.05 * max(values))
    for entry in series:
        entry["points"] = [[x, min(y, limits[1])] for x, y in entry["points"]]
    description = "Training loss over iterations, " + ", ".join(
        f"{name} ends at {smooth(list(run.losses.values()))[-1]:.3g}" for run, name in zip(runs, names) if run.losses
    )
    caption = "Total loss of the trainer; the strong line is a running mean."
    x = ("iteration", (min(steps), max(max(steps), min(steps) + 1)))
    return Chart("training-loss", "Training loss", caption, description, x, ("loss", limits), series)


def _evaluations(runs: Sequence[Run], names: Sequence[str]) -> Chart | None:
    by_epoch = all(e.epoch is not None for run in runs for e in run.evaluations)
    unit = "epoch" if by_epoch else "iteration"
    series: list[dict[str, Any]] = []
    best = []
    for number, (run, name) in enumerate(zip(runs, names)):
        for metric, title in METRICS.items():
            points = [(getattr(e, unit), e.scores[metric]) for e in run.evaluations if metric in e.scores]
            if not points:
                continue
            steps, scores = zip(*points)
            label = f"{name}, {title}" if len(names) > 1 else title
            color = METRIC_COLORS[len(series) % len(METRIC_COLORS)]
            series.append(line(label, color, steps, scores, **({"dashed": True} if number else {})))
            best.append(f"{label} {max(scores):.3f} at {unit} {steps[scores.index(max(scores))]}")
    if not series:
        return None
    xs, ys = zip(*(point for entry in series for point in entry["points"]))
    x = (unit, (min(0, *xs) if len(xs) > 1 else 0, max(xs)))
    y = ("score", (0.0, min(1.0, max(0.05, 1.15 * max(ys)))))
    caption = f"Best: {'; '.join(best)}. As the trainer's log has it, which may differ from the official score."
    description = f"Scores by {unit}: {'; '.join(best)}"
    return Chart("training-scores", "Scores on the way", caption, description, x, y, series)

"""The scores of an evaluation, as what a page shows: headline, table, charts, errors, confusion, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from defocus_eval.pages.charts import RUN_COLORS, Chart, line
from defocus_eval.pages.terms import (
    CLASS_COLUMNS,
    DETECTION_HEADLINE,
    ERRORS,
    EXPLANATIONS,
    HEADLINES,
    MAIN,
    MEANINGS,
    TITLES,
)

LARGEST_MATRIX = 25
CONFUSIONS = 20
# Where two classes differ by less, the table says nothing of better or worse.
NOTICED = 0.005


class Cell(NamedTuple):
    """A cell of a table that sorts.

    Attributes:
        value: What it is sorted by.
        text: What it says.
        meter: Length of its bar in percent, where it is a main number.
        second: Whether it is of the second run.
        style: Class of the style sheet.
    """

    value: Any
    text: str
    meter: float | None = None
    second: bool = False
    style: str = ""


def build_part(task: str, results: Sequence[Mapping[str, Any]], names: Sequence[str], about: Mapping) -> dict[str, Any]:
    """What the page shows of a task.

    Args:
        task: Key of `terms.TITLES`.
        results: What `evaluate` gave for the task: of one run, or of the one compared with and of the run, the latter
            with `against`.
        names: What the runs are called.
        about: `about` of the evaluation.
    """
    charts = [*_precision_recall(task, results, names), *_by_score(task, results, names)]
    charts += _calibration(task, results, names)
    return {
        "key": task,
        "title": TITLES[task],
        "explanation": f"{EXPLANATIONS[task]} {_explain_intervals(results, about)}".strip(),
        "headline": _headline(task, results),
        "charts": charts,
        "errors": _errors(results),
        "confusions": _confusion(results[-1], names[-1] if len(names) > 1 else ""),
        "classes": _classes(task, results, names),
        "table": _table(results, names),
        "elsewhere": _elsewhere(results[-1]),
    }


def _explain_intervals(results: Sequence[Mapping], about: Mapping) -> str:
    if not about.get("samples"):
        return ""
    sets = f"{100 * about['level']:g} % of {about['samples']} resampled sets of images"
    if len(results) > 1:
        return (
            f"Under both scores stands their difference with its interval over {sets}: ▲ and ▼ where it excludes zero, "
            "≈ where it does not."
        )
    return f"Under each score stands its interval over {sets}."


def score_text(value: float | None) -> str:
    """Three digits; a dash where there is nothing to score."""
    return f"{value:.3f}" if _is_scored(value) else "–"


def _scores(result: Mapping) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, float | int) and name != "detections"}


def _headline(task: str, results: Sequence[Mapping]) -> list[dict[str, Any]]:
    result = results[-1]
    tiles = []
    for name in HEADLINES.get(task, DETECTION_HEADLINE):
        value = result.get(name)
        if not _is_scored(value):
            continue
        tile = {"name": name, "value": score_text(value), "other": None, "low": None, "high": None}
        tile["meaning"] = MEANINGS.get(name, name)
        if len(results) > 1:
            difference, interval, sign, verdict = _difference(result, name)
            tile |= {"value": score_text(results[0].get(name)), "other": score_text(value), "verdict": verdict}
            tile["difference"] = f"{sign} {difference:+.3f}" if difference is not None else "–"
            low_high = [f"{end:+.3f}" for end in interval] if interval else (None, None)
        else:
            interval = result.get("intervals", {}).get(name)
            low_high = [f"{end:.3f}" for end in interval] if interval else (None, None)
        tile["low"], tile["high"] = low_high
        tiles.append(tile)
    return tiles


def _difference(result: Mapping, name: str) -> tuple[float | None, Sequence[float] | None, str, str]:
    """Difference to the other run, its interval, a sign and a style for what it means."""
    found = result.get("against", {}).get("differences", {}).get(name)
    if not found:
        return None, None, "", ""
    interval = found.get("interval")
    if interval and interval[0] > 0:
        return found["difference"], interval, "▲", "better"
    if interval and interval[1] < 0:
        return found["difference"], interval, "▼", "worse"
    return found["difference"], interval, "≈" if interval else "", ""


def _table(results: Sequence[Mapping], names: Sequence[str]) -> dict[str, Any]:
    two = len(results) > 1
    rows = []
    for name, value in _scores(results[-1]).items():
        if two:
            difference, interval, sign, _ = _difference(results[-1], name)
            changed = f"{sign} {difference:+.3f}" if difference is not None else "–"
            spread = f"{interval[0]:+.3f} – {interval[1]:+.3f}" if interval else "–"
            cells = [score_text(results[0].get(name)), score_text(value), changed, spread]
        else:
            interval = results[0].get("intervals", {}).get(name)
            cells = [score_text(value), f"{interval[0]:.3f} – {interval[1]:.3f}" if interval else "–"]
        rows.append({"name": name, "cells": cells, "meaning": MEANINGS.get(name, "")})
    for name, value in results[-1].get("fixed", {}).items():
        before = [score_text(results[0].get("fixed", {}).get(name))] if two else []
        cells = [*before, score_text(value), *(["–"] * (2 if two else 1))]
        rows.append(
            {"name": f"{name} fixed", "cells": cells, "meaning": "10,000 detections a class, any number an image"}
        )
    return {"columns": [*names, "difference", "interval"] if two else ["value", "interval"], "rows": rows}


def _elsewhere(result: Mapping) -> list[dict[str, str]]:
    return [
        {
            "who": entry["who"],
            "why": entry["why"],
            "scores": ", ".join(f"{name} {score_text(value)}" for name, value in entry["scores"].items()),
        }
        for entry in result.get("elsewhere", ())
    ]


def _precision_recall(task: str, results: Sequence[Mapping], names: Sequence[str]) -> list[Chart]:
    found = [result.get("curves", {}).get("precision_recall") for result in results]
    if not all(found):
        return []
    series = []
    for curve, name, color in zip(found, names, RUN_COLORS):
        prefix = f"{name}, " if len(names) > 1 else ""
        series.append(line(f"{prefix}IoU 0.50", color, curve["recall"], curve["iou_0.50"]))
        series.append(line(f"{prefix}mean", color, curve["recall"], curve["mean"], dashed=True))
        if len(names) == 1:
            series.append(line("IoU 0.75", color, curve["recall"], curve["iou_0.75"], faint=True))
    description = "Precision falls over recall. " + "; ".join(
        f"{name}: precision {curve['iou_0.50'][50]:.2f} at recall 0.5 and IoU 0.5" for name, curve in zip(names, found)
    )
    caption = "Mean of the classes, of objects of all sizes; dashed: mean of IoU 0.50 to 0.95."
    axes = ("recall", (0.0, 1.0)), ("precision", (0.0, 1.0))
    return [Chart(f"{task}-precision-recall", "Precision over recall", caption, description, *axes, series)]


def _by_score(task: str, results: Sequence[Mapping], names: Sequence[str]) -> list[Chart]:
    found = [result.get("curves", {}).get("score") for result in results]
    if not all(found):
        return []
    series, words = [], []
    for curve, name, color in zip(found, names, RUN_COLORS):
        best = curve["best_F1"]
        if len(names) > 1:
            series.append(line(f"{name}, precision", color, curve["at_least"], curve["precision"]))
            series.append(line(f"{name}, recall", color, curve["at_least"], curve["recall"], dashed=True))
            words.append(f"{name}: {best['F1']:.3f} at {best['at_least']:.2f}")
        else:
            for key, shade in (("precision", "a"), ("recall", "b"), ("F1", "good")):
                series.append(line(key, shade, curve["at_least"], curve[key], dashed=key == "F1"))
            words.append(f"{best['F1']:.3f} at {best['at_least']:.2f}")
    caption = f"All classes together at IoU 0.5, detections of at least that score. Best F1: {'; '.join(words)}."
    axes = ("score", (0.0, 1.0)), ("", (0.0, 1.0))
    return [Chart(f"{task}-by-score", "What a score threshold keeps", caption, caption, *axes, series)]


def _calibration(task: str, results: Sequence[Mapping], names: Sequence[str]) -> list[Chart]:
    found = [result["calibration"] for result in results if result.get("calibration")]
    if len(found) < len(results):
        return []
    series, words = [], []
    for entry, name, color in zip(found, names, RUN_COLORS):
        bins = [part for part in entry["bins"] if part["count"]]
        series.append(line(name, color, [part["score"] for part in bins], [part["true"] for part in bins]))
        words.append(f"{name + ' ' if len(names) > 1 else ''}{entry['expected_error']:.3f}")
    caption = f"On the dotted line scores are honest. Expected calibration error: {', '.join(words)}."
    axes = ("score", (0.0, 1.0)), ("share that is true", (0.0, 1.0))
    return [Chart(f"{task}-calibration", "Calibration", caption, caption, *axes, series, diagonal=True)]


def _errors(results: Sequence[Mapping]) -> dict[str, Any] | None:
    found = [result.get("errors", {}).get("types") for result in results]
    if not all(found):
        return None
    largest = max([0.01, *(kind["AP50_gain"] for types in found for kind in types.values())])
    rows = [
        {
            "name": name,
            "meaning": meaning,
            "values": [f"{types[name]['AP50_gain']:.3f}" for types in found],
            "counts": [f"{types[name]['count']:,}" for types in found],
            "shares": [round(100 * types[name]["AP50_gain"] / largest, 1) for types in found],
        }
        for name, meaning in ERRORS.items()
    ]
    caption = "How much AP50 would gain if all errors of a kind were mended (TIDE), and how many there are."
    return {"unit": "AP50 lost", "rows": rows, "caption": caption}


def _confusion(result: Mapping, name: str) -> list[dict[str, Any]]:
    found = result.get("confusion")
    if not found:
        return []
    title = f"What is taken for what{', ' + name if name else ''}"
    if "score" in found:
        caption = (
            f"Percent of a class's objects, at IoU 0.5, among detections of at least {found['score']:.2f}; in the last "
            "row of what was found where nothing is."
        )
    else:
        caption = "Percent of a class's pixels."
    common = {
        "title": title,
        "caption": caption,
        "corner": "is ↓ taken for →",
        "matrix": [],
        "worst": [],
        "columns": [],
    }
    labels, matrix = found.get("labels"), found.get("matrix")
    if labels and len(labels) <= LARGEST_MATRIX:
        # A last column without an entry says nothing: there is no pixel of no class.
        columns = labels if any(row[-1] for row in matrix) else labels[:-1]
        rows = [_row(name, i, row[: len(columns)]) for i, (name, row) in enumerate(zip(labels, matrix))]
        return [{**common, "columns": columns, "matrix": rows}]
    largest = found["largest"] if "largest" in found else _largest(labels, matrix)
    worst = [
        {
            "name": entry["object"],
            "taken": entry["taken_for"],
            "share": f"{entry['share']:.1%}",
            "amount": entry["count"],
        }
        for entry in largest
    ]
    return [{**common, "worst": worst, "corner": "is"}]


def _row(name: str, index: int, row: Sequence[int]) -> dict[str, Any]:
    total = sum(row)
    cells = []
    for column, amount in enumerate(row):
        share = amount / total if total else 0.0
        # What is nowhere and was found nowhere has no meaning.
        text = f"{100 * share:.0f}" if share >= 0.005 else ""
        right = index == column
        cells.append({"text": text, "share": round(70 * share), "right": right, "amount": f"{amount:,}"})
    return {"name": name, "cells": cells}


def _largest(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = [
        {"object": labels[i], "taken_for": labels[j], "count": amount, "share": amount / sum(row)}
        for i, row in enumerate(matrix)
        for j, amount in enumerate(row)
        if i != j and amount
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:CONFUSIONS]


def _classes(task: str, results: Sequence[Mapping], names: Sequence[str]) -> dict[str, Any] | None:
    classes = [result.get("per_class") or {} for result in results]
    if not classes[-1]:
        return None
    family = task if task in ("panoptic", "semantic", "instances") else "detection"
    main = MAIN.get(family, "AP")
    if len(results) > 1:
        return _compared_classes(classes, names, main)
    entries = classes[-1].values()
    # A size of which the set has no objects needs no column.
    columns = [
        column
        for column in CLASS_COLUMNS[family]
        if column[0] == main or any(_is_scored(entry.get(column[0])) for entry in entries)
    ]
    heads = [{"name": "class", "sorted": None}]
    heads += [{"name": title, "sorted": "descending" if key == main else None} for key, title, _ in columns]
    rows = []
    for name, entry in classes[-1].items():
        cells = [Cell(name, name)]
        for key, _, is_share in columns:
            value = entry.get(key)
            cells.append(_number(value, is_share, meter=key == main))
        rows.append(cells)
    position = 1 + [key for key, _, _ in columns].index(main)
    rows.sort(key=lambda row: -(row[position].value if row[position].value != "" else -1))
    return {"columns": heads, "rows": rows}


def _compared_classes(classes: Sequence[Mapping], names: Sequence[str], main: str) -> dict[str, Any]:
    heads = [{"name": name, "sorted": None} for name in ("class", *(f"{main}, {name}" for name in names))]
    heads.append({"name": "difference", "sorted": "descending"})
    rows = []
    for name, entry in classes[-1].items():
        pair = [classes[0].get(name, {}).get(main), entry.get(main)]
        cells = [Cell(name, name)]
        cells += [_number(value, True, meter=True)._replace(second=bool(i)) for i, value in enumerate(pair)]
        if not all(map(_is_scored, pair)):
            cells.append(Cell("", "–"))
        else:
            change = pair[1] - pair[0]
            style = "better" if change > NOTICED else "worse" if change < -NOTICED else ""
            cells.append(Cell(round(change, 5), f"{change:+.3f}", style=style))
        rows.append(cells)
    rows.sort(key=lambda row: -(row[-1].value if row[-1].value != "" else -9))
    return {"columns": heads, "rows": rows}


def _is_scored(value: float | None) -> bool:
    return value is not None and value >= 0


def _number(value: float | None, is_share: bool, meter: bool) -> Cell:
    if value is None or not _is_scored(value):
        return Cell("", "–")
    if not is_share:
        return Cell(value, f"{value:,}")
    return Cell(round(value, 5), f"{value:.3f}", round(100 * value, 1) if meter else None)

"""The result of `evaluate` as Markdown: what a person reads first, in tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

TITLES = {
    "bbox": "Boxes",
    "segm": "Masks",
    "boundary": "Boundaries of masks",
    "panoptic": "Panoptic segmentation",
    "semantic": "Semantic segmentation",
    "instances": "Instances of Cityscapes",
}
# What a class is described by, as far as it has it: fractions, then other things.
CLASS_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "PQ", "SQ", "RQ", "IoU", "accuracy")
CLASS_FACTS = ("objects", "found", "false", "missed", "pixels")


def to_markdown(result: dict[str, Any], most_classes: int | None = None) -> str:
    """Tables of scores in percent.

    Args:
        result: What `evaluate` returned.
        most_classes: Of more classes than this the best and the worst are shown; None for all.
    """
    about = result["about"]
    parts = [f"# {about['predictions']}", _about(about)]
    if about["notes"]:
        parts.append("\n".join(f"- {note}" for note in about["notes"]))
    for task, title in TITLES.items():
        if task in result:
            parts.append(f"## {title}")
            parts += _task(result[task], about, most_classes)
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns as wide as what is in them; names on the left, numbers on the right."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def plain_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as narrow as can be, for documents that are kept; cells stand as they are."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows))


def fill_blocks(text: str, marker: str, content: Callable[[str], str]) -> str:
    """Fills the marked blocks of a document, `<!-- MARKER: NAME -->` to `<!-- /MARKER -->`.

    Args:
        text: The document.
        marker: What the blocks are called.
        content: Gives what a block of that name is to hold; what it raises is raised.
    """
    block = re.compile(rf"(<!-- {marker}: ([\w-]+) -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}{content(found[2])}{found[3]}", text)


def percent(value: float | None) -> str:
    """A fraction in percent, a dash where there is none."""
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"


def _about(about: dict[str, Any]) -> str:
    writer = "" if about["writer"] == "unknown" else f", written by {about['writer']}"
    text = f"Against {about['annotations']} ({about['kind']}, {about['images']} images){writer}. In percent."
    if about.get("samples"):
        text += (
            f" Intervals: {100 * about['level']:g} % of {about['samples']} resampled sets of images (seed "
            f"{about['seed']})."
        )
    return text


def _task(numbers: dict[str, Any], about: dict[str, Any], most_classes: int | None) -> list[str]:
    parts = [_scores(numbers)]
    parts += [f"**{other['who']}**: {other['why']}." for other in numbers.get("elsewhere", [])]
    if "fixed" in numbers:
        parts.append(
            "AP-fixed: 10,000 detections of a class, no limit of an image; the file holds at most "
            f"{numbers['most_of_image']:,} of an image."
        )
        scores = numbers["fixed"]
        parts.append(table(["", *scores], [["AP-fixed", *map(percent, scores.values())]]))
    if "curves" in numbers:
        best = numbers["curves"]["score"]["best_F1"]
        parts.append(f"Best score to cut at: {best['at_least']:.2f}, F1 {percent(best['F1'])} at IoU 0.50.")
    if numbers.get("calibration"):
        parts.append(
            f"Calibration at IoU 0.50: scores are off by {percent(numbers['calibration']['expected_error'])} on "
            f"average, by {percent(numbers['calibration']['largest_error'])} at most."
        )
    if "errors" in numbers:
        types = numbers["errors"]["types"].items()
        rows = [[name, f"{error['count']:,}", f"{100 * error['AP50_gain']:.1f}"] for name, error in types]
        parts += ["### Errors", table(["error", "count", "AP50 without it"], rows)]
    confused = numbers.get("confusion", {}).get("largest")
    if confused:
        rows = [[pair["object"], pair["taken_for"], pair["count"], percent(pair["share"])] for pair in confused[:5]]
        parts += [
            f"### Confused most, score at least {numbers['confusion']['score']:.2f}",
            table(["object", "taken for", "count", "of the class"], rows),
        ]
    if numbers.get("per_class"):
        parts += ["### Classes", _classes(numbers["per_class"], numbers.get("against", {}), most_classes)]
    if numbers.get("per_category"):
        rows = [[name, percent(value)] for name, value in numbers["per_category"].items()]
        parts += ["### Categories", table(["category", "IoU"], rows)]
    changed = numbers.get("against", {}).get("changed_images")
    if changed:
        rows = [
            [image["file_name"] or image["image_id"], percent(image["score"]), percent(image["other"]), _signed(image)]
            for image in changed
        ]
        parts += ["### Images that changed most", table(["image", "this", "other", "difference"], rows)]
    return parts


def _scores(numbers: dict[str, Any]) -> str:
    names = [name for name, value in numbers.items() if value is None or isinstance(value, float)]
    rows = [["official", *(percent(numbers[name]) for name in names)]]
    if numbers.get("intervals"):
        rows.append(["interval", *(_range(numbers["intervals"].get(name)) for name in names)])
    against = numbers.get("against")
    if against:
        differences = [against["differences"].get(name, {}) for name in names]
        rows.append(["other run", *(percent(against["scores"].get(name)) for name in names)])
        rows.append(["difference", *map(_signed, differences)])
        if any("interval" in difference for difference in differences):
            rows.append(["its interval", *(_range(difference.get("interval"), "+.1f") for difference in differences)])
    for other in numbers.get("elsewhere", []):
        # mmdet names its recalls by other limits.
        if other["scores"]:
            rows.append([other["who"], *(percent(other["scores"].get(name)) for name in names)])
    return table(["", *names], rows)


def _classes(classes: dict[str, dict], against: dict[str, Any], most: int | None) -> str:
    first = next(iter(classes.values()))
    columns = [name for name in CLASS_COLUMNS if name in first]
    facts = [name for name in CLASS_FACTS if name in first]
    ranked = sorted(classes.items(), key=lambda item: -_number(item[1][columns[0]]))
    shown = ranked if most is None or len(ranked) <= most else [*ranked[: most // 2], None, *ranked[-(most // 2) :]]
    with_intervals = any("interval" in numbers for numbers in classes.values())
    changes = against.get("per_class")
    header = ["class", *columns, *facts]
    header += ["interval"] * with_intervals + ["difference"] * bool(changes)
    rows = []
    for item in shown:
        if item is None:
            rows.append([f"… {len(ranked) - len(shown) + 1} more", *[""] * (len(header) - 1)])
            continue
        name, numbers = item
        row = [name, *(percent(numbers[column]) for column in columns), *(f"{numbers[fact]:,}" for fact in facts)]
        row += [_range(numbers.get("interval"))] * with_intervals
        row += [_signed({"difference": changes[name]} if name in changes else {})] if changes else []
        rows.append(row)
    return table(header, rows)


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def _signed(change: dict[str, Any]) -> str:
    return f"{100 * change['difference']:+.1f}" if "difference" in change else "–"


def _range(interval: Sequence[float] | None, form: str = ".1f") -> str:
    return "–" if interval is None else f"{100 * interval[0]:{form}} to {100 * interval[1]:{form}}"

"""Tables: what they say, and that they are tables."""

from pathlib import Path

import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.evaluate import evaluate, to_markdown
from defocus_eval.markdown import percent, table

DATA = Path("tests/data/evaluation")


def rows(text):
    """Cells of each line of each table, by the table's first cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_table_is_aligned():
    text = table(["class", "AP"], [["kite", "12.3"], ["a|b", "4.0"]])
    assert text.splitlines() == ["| class |   AP |", "| ----- | ---: |", "| kite  | 12.3 |", "| a\\|b  |  4.0 |"]


@pytest.mark.parametrize(("value", "text"), [(0.4567, "45.7"), (1, "100.0"), (0, "0.0"), (-1, "–"), (None, "–")])
def test_percent(value, text):
    assert percent(value) == text


def test_scores_intervals_and_other_sources():
    result = evaluate(DATA / "mmdet_coco", DATA / "instances.json", DATA / "mmdet_coco", samples=20)
    text = to_markdown(result)
    assert "## Boxes" in text and "## Masks" in text and "## Boundaries of masks" in text
    lines = rows(text)
    header = lines[0]
    assert header == ["", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    official = next(line for line in lines if line[0] == "official")
    assert official[1:] == [percent(result["bbox"][name]) for name in header[1:]]
    named = {line[0] for line in lines}
    assert {"interval", "log of mmdet", "the file as it is", "other run", "difference", "its interval"} <= named
    assert "**log of mmdet**: CocoMetric scores at 100, 300, 1000" in text
    assert next(line for line in lines if line[0] == "difference")[1] == "+0.0"
    assert all(len(line) == len(header) for line in lines if line[0] in ("official", "interval", "other run"))


def test_many_classes_are_cut_to_the_best_and_the_worst():
    result = evaluate(DATA / "cityscapes", DATA / "gtFine", samples=0)
    classes = result["semantic"]["per_class"]
    ranked = sorted(classes, key=lambda name: -1 if classes[name]["IoU"] is None else classes[name]["IoU"])
    text = to_markdown(result, most_classes=4)
    names = {line[0] for line in rows(text.split("### Classes")[1].split("###")[0])}
    # Of 19 classes; 15 are not told.
    assert names - {"class"} > {ranked[-1], ranked[-2], "… 15 more"} and len(names - {"class"}) == 6
    assert set(classes) <= {line[0] for line in rows(to_markdown(result))}


def test_lvis_and_panoptic_and_semantic():
    assert "AP-fixed" in to_markdown(evaluate(DATA / "mmdet_lvis.bbox.json", DATA / "lvis.json", samples=0))
    panoptic = rows(to_markdown(evaluate(DATA / "mmdet_pan", DATA / "panoptic.json", samples=0)))
    assert panoptic[0][1:4] == ["PQ", "SQ", "RQ"]
    semantic = to_markdown(evaluate(DATA / "cityscapes", DATA / "gtFine", samples=0))
    assert "### Categories" in semantic and "the board ranks by the mean over the 19 classes" in semantic

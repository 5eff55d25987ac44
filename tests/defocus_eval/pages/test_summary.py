"""How scores are told: what stands in tiles and tables, which sign a difference has, what confusion says."""

import pytest

pytest.importorskip("numpy", reason="numpy is not installed")

from defocus_eval.pages.summary import build_part

ABOUT = {"samples": 100, "level": 0.95}
CLASSES = {
    "cat": {"AP": 0.75, "AP50": 1.0, "APl": -1.0, "objects": 1200, "F1": 0.5, "score_of_F1": 0.25},
    "dog": {"AP": -1.0, "AP50": -1.0, "objects": 0},
    "eel": {"AP": 0.25, "AP50": 0.5, "objects": 7},
}


def texts(rows):
    return [[cell.text for cell in row] for row in rows]


def test_a_run_has_scores_with_their_intervals():
    result = {"AP": 0.5, "APl": -1.0, "AR100": 0.75, "intervals": {"AP": [0.4, 0.6]}, "per_class": CLASSES}
    part = build_part("bbox", [result], ["run"], ABOUT)
    assert [(t["name"], t["value"], t["low"], t["high"], t["other"]) for t in part["headline"]] == [
        ("AP", "0.500", "0.400", "0.600", None),
        ("AR100", "0.750", None, None, None),
    ]
    assert [[row["name"], *row["cells"]] for row in part["table"]["rows"]] == [
        ["AP", "0.500", "0.400 – 0.600"],
        ["APl", "–", "–"],
        ["AR100", "0.750", "–"],
    ]
    assert "95 % of 100 resampled sets" in part["explanation"]
    assert not part["charts"] and not part["errors"] and not part["confusions"]
    assert [head["name"] for head in part["classes"]["columns"]] == [
        *("class", "objects", "AP", "AP50", "best F1", "at score"),
    ]  # fmt: skip
    # The best class first; one without objects last, and sorted there by the page, too.
    assert texts(part["classes"]["rows"]) == [
        ["cat", "1,200", "0.750", "1.000", "0.500", "0.250"],
        ["eel", "7", "0.250", "0.500", "–", "–"],
        ["dog", "0", "–", "–", "–", "–"],
    ]
    assert part["classes"]["rows"][2][2].value == ""


@pytest.mark.parametrize(
    ("interval", "sign", "verdict"),
    [([0.1, 0.3], "▲ +0.200", "better"), ([-0.1, 0.3], "≈ +0.200", ""), (None, " +0.200", "")],
)
def test_a_difference_is_called_better_where_its_interval_says_so(interval, sign, verdict):
    against = {"differences": {"PQ": {"difference": 0.2, **({"interval": interval} if interval else {})}}}
    part = build_part("panoptic", [{"PQ": 0.3}, {"PQ": 0.5, "against": against}], ["old", "new"], ABOUT)
    (tile,) = part["headline"]
    assert (tile["value"], tile["other"], tile["difference"], tile["verdict"]) == ("0.300", "0.500", sign, verdict)
    assert part["table"]["columns"] == ["old", "new", "difference", "interval"]


def test_a_loss_is_called_worse():
    against = {"differences": {"mIoU": {"difference": -0.2, "interval": [-0.3, -0.1]}}}
    part = build_part("semantic", [{"mIoU": 0.7}, {"mIoU": 0.5, "against": against}], ["old", "new"], ABOUT)
    assert (part["headline"][0]["difference"], part["headline"][0]["verdict"]) == ("▼ -0.200", "worse")


def test_classes_of_two_runs_side_by_side():
    before = {"per_class": {"cat": {"AP": 0.5}, "dog": {"AP": 0.5}, "eel": {"AP": 0.253}}}
    part = build_part("segm", [before, {"per_class": CLASSES}], ["old", "new"], {})
    assert texts(part["classes"]["rows"]) == [
        ["cat", "0.500", "0.750", "+0.250"],
        ["eel", "0.253", "0.250", "-0.003"],
        ["dog", "0.500", "–", "–"],
    ]
    assert [row[3].style for row in part["classes"]["rows"]] == ["better", "", ""]


def test_confusion_in_percent_of_each_row():
    matrix = [[6, 2, 2], [0, 3, 0], [1, 0, 0]]
    found = {"labels": ["cat", "dog", "background"], "matrix": matrix, "score": 0.3, "largest": []}
    (table,) = build_part("bbox", [{"confusion": found}], ["run"], {})["confusions"]
    assert [[row["name"], *(cell["text"] for cell in row["cells"])] for row in table["matrix"]] == [
        ["cat", "60", "20", "20"],
        ["dog", "", "100", ""],
        ["background", "100", "", ""],
    ]
    assert [cell["right"] for cell in table["matrix"][0]["cells"]] == [True, False, False]
    # Pixels of no class: a column without an entry is left out.
    labels = {"labels": ["road", "car", "none"], "matrix": [[9, 1, 0], [0, 5, 0]]}
    (table,) = build_part("semantic", [{"confusion": labels}], ["run"], {})["confusions"]
    assert table["columns"] == ["road", "car"] and len(table["matrix"][0]["cells"]) == 2


def test_many_classes_are_told_by_their_largest_confusions():
    labels = [f"class {i}" for i in range(40)]
    matrix = [[10 * (i == j) + 5 * (j == i + 1) * (i in (3, 7)) for j in range(41)] for i in range(40)]
    (table,) = build_part("semantic", [{"confusion": {"labels": [*labels, "none"], "matrix": matrix}}], ["run"], {})[
        "confusions"
    ]
    assert not table["matrix"]
    assert [(row["name"], row["taken"], row["share"], row["amount"]) for row in table["worst"]] == [
        ("class 3", "class 4", "33.3%", 5),
        ("class 7", "class 8", "33.3%", 5),
    ]


def test_errors_are_measured_by_the_largest():
    kinds = ("classification", "localisation", "both", "duplicate", "background", "missed")
    types = {kind: {"count": 1000 * i, "AP50_gain": 0.1 * i} for i, kind in enumerate(kinds)}
    errors = build_part("bbox", [{"errors": {"types": types}}], ["run"], {})["errors"]
    assert [row["shares"] for row in errors["rows"]] == [[0.0], [20.0], [40.0], [60.0], [80.0], [100.0]]
    assert errors["rows"][2] | {"meaning": ""} == {
        "name": "both", "meaning": "", "values": ["0.200"], "counts": ["2,000"], "shares": [40.0],
    }  # fmt: skip

"""Error types, confusion, calibration and curves of sets whose every detection is known."""

import copy

import numpy as np
import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.formats import read_truth
from defocus_eval.scores import analysis
from defocus_eval.scores.bootstrap import draw_weights
from defocus_eval.scores.detection import Detection
from tests.defocus_eval.drawn import CATEGORIES, draw_detections, draw_instances, without, write
from tests.defocus_eval.scores.test_detection import pycocotools

SIZE = {"height": 100, "width": 200}


def made(tmp_path, objects, found):
    """One image: objects `(class, box)`, detections `(class, box, score)`."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", **SIZE}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": key, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (key, box) in enumerate(objects, 1)
        ],
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    entries = [{"image_id": 1, "category_id": key, "bbox": box, "score": score} for key, box, score in found]
    return Detection(read_truth(write(tmp_path / "truth.json", truth)), entries, "bbox")


A, B, C = [0, 0, 40, 40], [60, 0, 40, 40], [120, 0, 40, 40]
KITE, TILE, STAIN = CATEGORIES


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ((TILE, A, 0.5), "classification"),
        # IoU of 1/3 with an object that is free, of its class and of another.
        ((KITE, [80, 0, 40, 40], 0.5), "localisation"),
        ((STAIN, [80, 0, 40, 40], 0.5), "both"),
        ((KITE, A, 0.5), "duplicate"),
        ((KITE, [0, 60, 30, 30], 0.5), "background"),
    ],
)
def test_each_type_of_error(extra, kind, tmp_path):
    detection = made(tmp_path, [(KITE, A), (KITE, B)], [(KITE, A, 0.9), extra])
    errors = analysis.error_types(detection)
    counts = {name: error["count"] for name, error in errors["types"].items()}
    assert {name for name, count in counts.items() if count and name != "missed"} == {kind}
    assert list(counts) == ["classification", "localisation", "both", "duplicate", "background", "missed"]
    assert errors["AP50"] == pytest.approx(detection.official()["AP50"])


def test_missed_objects_cost_what_they_cost(tmp_path):
    errors = analysis.error_types(made(tmp_path, [(KITE, A), (KITE, B)], [(KITE, A, 0.9)]))
    assert errors["types"]["missed"] == {"count": 1, "AP50_gain": pytest.approx(1 - 51 / 101)}


def test_confusion_counts_objects_by_what_they_are_taken_for(tmp_path):
    objects = [(KITE, A), (TILE, B), (STAIN, C)]
    found = [(KITE, A, 0.9), (STAIN, B, 0.8), (TILE, [0, 60, 30, 30], 0.7), (KITE, C, 0.3)]
    confusion = analysis.confusion(made(tmp_path, objects, found), 0.5)
    assert confusion["labels"] == ["kite", "tile", "stain", "background"]
    # Rows: what it is; columns: what it is taken for. The weak detection of the stain does not count.
    assert confusion["matrix"] == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert confusion["largest"] == [{"object": "tile", "taken_for": "stain", "count": 1, "share": 1.0}]


def test_calibration_compares_scores_with_shares(tmp_path):
    found = [(KITE, A, 0.95), (KITE, B, 0.95), (KITE, C, 0.35), (KITE, [0, 60, 30, 30], 0.35)]
    calibration = analysis.calibration(made(tmp_path, [(KITE, A), (KITE, B), (KITE, C)], found))
    filled = [entry for entry in calibration["bins"] if entry["count"]]
    assert [(entry["count"], entry["true"]) for entry in filled] == [(2, 0.5), (2, 1.0)]
    assert [entry["score"] for entry in filled] == pytest.approx([0.35, 0.95])
    assert calibration["expected_error"] == pytest.approx((0.15 + 0.05) / 2)
    assert calibration["largest_error"] == pytest.approx(0.15)


def test_scores_that_are_no_shares_are_not_calibrated(tmp_path):
    assert analysis.calibration(made(tmp_path, [(KITE, A)], [(KITE, A, 3.0)])) is None


def test_curves_over_the_score(tmp_path):
    found = [(KITE, A, 0.9), (KITE, B, 0.5), (TILE, [0, 60, 30, 30], 0.5), (KITE, [50, 60, 30, 30], 0.1)]
    score = analysis.curves(made(tmp_path, [(KITE, A), (KITE, B), (TILE, C)], found))["score"]
    at = {cut: index for index, cut in enumerate(score["at_least"])}
    for cut, precision, recall in ((0.0, 2 / 4, 2 / 3), (0.1, 2 / 4, 2 / 3), (0.5, 2 / 3, 2 / 3), (0.9, 1, 1 / 3)):
        assert score["precision"][at[cut]] == pytest.approx(precision, abs=1e-4)
        assert score["recall"][at[cut]] == pytest.approx(recall, abs=1e-4)
        assert score["F1"][at[cut]] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-4)
    assert score["best_F1"] == {"at_least": 0.12, "F1": pytest.approx(2 / 3)}
    assert score["recall"][at[0.92]] == 0


@pytest.fixture
def drawn(tmp_path):
    rng = np.random.default_rng(3)
    content = draw_instances(rng)
    entries = without(draw_detections(rng, content), "segmentation")
    truth = read_truth(write(tmp_path / "truth.json", content))
    return Detection(truth, entries, "bbox"), pycocotools(content, copy.deepcopy(entries), "bbox").eval


def test_classes_and_curves_are_those_of_pycocotools(drawn):
    detection, reference = drawn
    classes = analysis.of_classes(detection, None, 0.95)
    for column, name in enumerate(CATEGORIES.values()):
        precision = reference["precision"][:, :, column, :, -1]
        assert classes[name]["AP"] == pytest.approx(precision[:, :, 0].mean(), abs=1e-12)
        assert classes[name]["AP50"] == pytest.approx(precision[0, :, 0].mean(), abs=1e-12)
        assert classes[name]["AP75"] == pytest.approx(precision[5, :, 0].mean(), abs=1e-12)
        for index, size in enumerate(("APs", "APm", "APl"), 1):
            assert classes[name][size] == pytest.approx(precision[:, :, index].mean(), abs=1e-12)
        assert classes[name]["AR"] == pytest.approx(reference["recall"][:, column, 0, -1].mean(), abs=1e-12)
    assert sum(numbers["objects"] for numbers in classes.values()) == detection.matches.wanted[0].sum()
    curve = analysis.curves(detection)["precision_recall"]
    assert curve["iou_0.50"] == pytest.approx(reference["precision"][0, :, :, 0, -1].mean(1), abs=5.1e-5)
    assert curve["mean"] == pytest.approx(reference["precision"][..., 0, -1].mean((0, 2)), abs=5.1e-5)


def test_intervals_of_classes_hold_their_scores(drawn):
    detection, _ = drawn
    weights = draw_weights(12, 50, 0)
    for numbers in analysis.of_classes(detection, weights, 0.95).values():
        low, high = numbers["interval"]
        assert 0 <= low < numbers["AP"] < high <= 1


def test_classes_of_one_name_are_told_apart(tmp_path):
    detection = made(tmp_path, [(KITE, A)], [(KITE, A, 0.9)])
    for category_id in (KITE, STAIN):
        detection.truth.categories[category_id] = "thing"
    assert analysis.class_names(detection) == [f"thing ({KITE})", "tile", f"thing ({STAIN})"]


def test_the_best_cut_of_a_class_is_at_a_score(tmp_path):
    found = [(KITE, A, 0.9), (KITE, B, 0.5), (KITE, [0, 60, 30, 30], 0.5), (KITE, [50, 60, 30, 30], 0.1)]
    numbers = analysis.of_classes(made(tmp_path, [(KITE, A), (KITE, B)], found), None, 0.95)["kite"]
    # At 0.5 both are taken, the false one, too: 2 of 3 and 2 of 2.
    assert numbers["F1"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1)) and numbers["score_of_F1"] == 0.5

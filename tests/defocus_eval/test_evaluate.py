"""The whole result: what is in it, for which tasks, and how two runs compare."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.errors import InputError
from defocus_eval.evaluate import evaluate
from tests.defocus_eval.drawn import draw_detections, draw_instances, without, write

DATA = Path("tests/data/evaluation")
OFFICIAL = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ground truth, a run, and one that finds worse what the first finds."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(5)
    content = draw_instances(rng, images=30)
    found = draw_detections(rng, content, digits=6)
    write(folder / "truth.json", content)
    write(folder / "good.segm.json", found)
    write(folder / "good.bbox.json", without(found, "segmentation"))
    worse = [dict(entry) for entry in without(found, "segmentation")]
    for entry in worse:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x + 0.12 * width, y, width, height]
    write(folder / "worse.bbox.json", worse)
    return folder


def test_all_tasks_of_a_run(runs):
    result = evaluate(runs / "good", runs / "truth.json", samples=30)
    assert list(result) == ["about", "bbox", "segm", "boundary"]
    for task in list(result)[1:]:
        numbers = result[task]
        assert list(numbers)[: len(OFFICIAL)] == OFFICIAL
        for name, (low, high) in numbers["intervals"].items():
            assert 0 <= low <= numbers[name] <= high <= 1
        assert set(numbers["per_class"]) == {"kite", "tile", "stain"}
        assert set(numbers["objects"]) == {"all", "small", "medium", "large"}
        assert len(numbers["images"]) > 20
    assert {"curves", "errors", "confusion", "calibration"} < set(result["segm"])
    about = result["about"]
    assert (about["kind"], about["writer"], about["images"], about["samples"]) == ("instances", "mmdet", 30, 30)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_tasks_can_be_chosen_and_must_be_there(runs):
    assert list(evaluate(runs / "good", runs / "truth.json", tasks=["boundary"], samples=0)) == ["about", "boundary"]
    with pytest.raises(InputError, match=r"answers bbox, not segm"):
        evaluate(runs / "good.bbox.json", runs / "truth.json", tasks=["segm"])
    with pytest.raises(InputError, match=r"there is no task boxes; name some of bbox, segm"):
        evaluate(runs / "good", runs / "truth.json", tasks=["boxes"])


@pytest.mark.parametrize(("name", "value"), [("samples", -1), ("level", 0), ("level", 1)])
def test_numbers_out_of_range(name, value, runs):
    with pytest.raises(InputError, match=name):
        evaluate(runs / "good.bbox.json", runs / "truth.json", **{name: value})


def test_without_samples_there_are_no_intervals(runs):
    numbers = evaluate(runs / "good.bbox.json", runs / "truth.json", samples=0)["bbox"]
    assert "intervals" not in numbers and all("interval" not in entry for entry in numbers["per_class"].values())


def test_the_seed_decides_the_intervals(runs):
    def intervals(seed):
        return evaluate(runs / "good.bbox.json", runs / "truth.json", samples=20, seed=seed)["bbox"]["intervals"]

    assert intervals(1) == intervals(1) != intervals(2)


def test_a_run_against_itself_does_not_differ(runs):
    result = evaluate(runs / "good.bbox.json", runs / "truth.json", runs / "good.bbox.json", samples=20)
    against = result["bbox"]["against"]
    for difference in against["differences"].values():
        assert difference == {"difference": 0, "interval": [0, 0], "share_better": 0.5}
    assert against["changed_images"] == [] and set(against["per_class"].values()) == {0}


def test_a_worse_run_is_told_apart(runs):
    good = evaluate(runs / "good.bbox.json", runs / "truth.json", runs / "worse.bbox.json", samples=100)
    worse = evaluate(runs / "worse.bbox.json", runs / "truth.json", runs / "good.bbox.json", samples=100)
    first, second = good["bbox"]["against"], worse["bbox"]["against"]
    assert first["scores"] == {name: worse["bbox"][name] for name in OFFICIAL}
    for name, difference in first["differences"].items():
        assert difference["difference"] == pytest.approx(good["bbox"][name] - worse["bbox"][name])
        assert second["differences"][name]["difference"] == pytest.approx(-difference["difference"])
        low, high = difference["interval"]
        assert second["differences"][name]["interval"] == pytest.approx([-high, -low])
    assert first["differences"]["AP"]["share_better"] == 1 and first["differences"]["AP"]["interval"][0] > 0
    # Paired: the same images are in both, so the difference is surer than the scores.
    widths = [
        np.ptp(interval) for interval in (first["differences"]["AP"]["interval"], good["bbox"]["intervals"]["AP"])
    ]
    assert widths[0] < widths[1]
    for name, value in first["per_class"].items():
        expected = good["bbox"]["per_class"][name]["AP"] - worse["bbox"]["per_class"][name]["AP"]
        assert value == pytest.approx(expected)
    changes = first["changed_images"]
    assert [abs(change["difference"]) for change in changes] == sorted(
        (abs(change["difference"]) for change in changes), reverse=True
    )
    for change in changes:
        key = str(change["image_id"])
        assert change["file_name"] == f"{key}.jpg"
        assert change["score"] == good["bbox"]["images"][key] and change["other"] == worse["bbox"]["images"][key]
        assert change["difference"] == change["score"] - change["other"] != 0


def test_runs_of_other_tasks_cannot_be_compared(runs):
    with pytest.raises(InputError, match=r"good.bbox.json holds bbox, .*good.segm.json segm, boundary"):
        evaluate(runs / "good.bbox.json", runs / "truth.json", runs / "good.segm.json")


@pytest.mark.parametrize(
    ("predictions", "annotations", "task", "main"),
    [("mmdet_pan", "panoptic.json", "panoptic", "PQ"), ("cityscapes", "gtFine", "semantic", "mIoU")],
)
def test_other_tasks_compare_alike(predictions, annotations, task, main):
    result = evaluate(DATA / predictions, DATA / annotations, DATA / predictions, samples=20)
    numbers = result[task]
    assert numbers["against"]["differences"][main]["difference"] == 0
    low, high = numbers["intervals"][main]
    assert low < numbers[main] < high
    assert all(len(entry["interval"]) == 2 for entry in numbers["per_class"].values() if "interval" in entry)
    json.dumps(result, allow_nan=False)


def test_panoptic_runs_of_two_trainers():
    predictions = [DATA / name for name in ("detectron2_panoptic/predictions.json", "mmdet_pan.panoptic.json")]
    numbers = evaluate(predictions[0], DATA / "panoptic.json", predictions[1], samples=20)["panoptic"]
    expected = evaluate(predictions[1], DATA / "panoptic.json", samples=0)["panoptic"]
    assert numbers["against"]["scores"]["PQ"] == expected["PQ"] < numbers["PQ"]
    assert numbers["against"]["changed_images"]


def test_lvis_tells_ap_fixed(runs):
    numbers = evaluate(DATA / "mmdet_lvis", DATA / "lvis.json", samples=0, tasks=["bbox", "segm"])["bbox"]
    assert list(numbers["fixed"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    # No image here has more than 300.
    assert numbers["most_of_image"] == 9
    assert numbers["fixed"] == {name: numbers[name] for name in numbers["fixed"]}
    assert {entry["frequency"] for entry in numbers["per_class"].values()} == {"r", "c", "f"}


def test_a_test_set_cannot_be_scored(tmp_path):
    content = json.loads((DATA / "instances.json").read_text())
    del content["annotations"]
    with pytest.raises(InputError, match=r"lists images without annotations.*defocus submit"):
        evaluate(DATA / "mmdet_coco.bbox.json", write(tmp_path / "info.json", content))


def test_an_annotation_of_id_0_counts_as_it_does_in_pycocotools(tmp_path):
    """Which takes what finds it for a false detection, for 0 is its mark of those that found nothing."""
    content = json.loads((DATA / "instances.json").read_text())
    before = evaluate(DATA / "mmdet_coco.bbox.json", DATA / "instances.json", samples=0)["bbox"]
    content["annotations"][0]["id"] = 0
    path = write(tmp_path / "truth.json", content)
    result = evaluate(DATA / "mmdet_coco.bbox.json", path, samples=0)
    truth = COCO(str(path))
    official = COCOeval(truth, truth.loadRes(str(DATA / "mmdet_coco.bbox.json")), "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    assert result["bbox"]["AP"] != before["AP"]
    assert [result["bbox"][name] for name in OFFICIAL] == pytest.approx(list(official.stats), abs=1e-12)
    assert "annotation of id 0" in result["about"]["notes"][0]


def test_instances_of_cityscapes(tmp_path):
    """Text files beside masks are scored as its board scores them."""
    from defocus_eval.formats import read_label_map
    from tests.defocus_eval.drawn import save

    for path in sorted((DATA / "gtFine").glob("*instanceIds.png")):
        frame = path.name.removesuffix("_gtFine_instanceIds.png")
        ids = read_label_map(path)
        lines = []
        for key in np.unique(ids[ids > 1000]):
            save(tmp_path / f"{frame}_{key}.png", (ids == key).astype(np.uint8))
            lines.append(f"{frame}_{key}.png {key // 1000} 0.9")
        (tmp_path / f"{frame}.txt").write_text("\n".join(lines))
    result = evaluate(tmp_path, DATA / "gtFine", tmp_path)
    assert result["instances"]["AP"] == pytest.approx(1) and result["about"]["kind"] == "cityscapes"
    assert result["instances"]["against"]["differences"]["AP"]["difference"] == 0
    json.dumps(result, allow_nan=False)


def test_where_nothing_counts_there_is_nothing_to_score(tmp_path):
    content = json.loads((DATA / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    result = evaluate(DATA / "mmdet_coco", write(tmp_path / "truth.json", content), samples=10)
    for task in ("bbox", "segm", "boundary"):
        numbers = result[task]
        assert {numbers[name] for name in OFFICIAL} == {-1} and numbers["intervals"] == {} == numbers["images"]
        assert "curves" not in numbers
    json.dumps(result, allow_nan=False)

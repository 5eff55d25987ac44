"""What trainers wrote and logged: their files are read for what they are, and their logs explained.

The files of `tests/data/evaluation` are what mmdet's, mmseg's and Detectron2's own evaluators wrote for one drawn set,
`logs.json` what they said: with panopticapi, cityscapesScripts and lvis-api, which are not needed here.
"""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from defocus_eval.evaluate import evaluate
from defocus_eval.formats import read_predictions, read_truth

DATA = Path("tests/data/evaluation")
# mmdet's words for the numbers.
MMDET = {"AP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "APs": "mAP_s", "APm": "mAP_m", "APl": "mAP_l"}


@pytest.fixture(scope="module")
def logs():
    return json.loads((DATA / "logs.json").read_text())


def score(predictions, annotations, **settings):
    return evaluate(DATA / predictions, DATA / annotations, samples=0, **settings)


def elsewhere(numbers, who):
    return next(other for other in numbers["elsewhere"] if other["who"] == who)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_mmdets_boxes_and_masks(task, logs):
    numbers = score("mmdet_coco", "instances.json")[task]
    assert "CocoMetric" in elsewhere(numbers, "log of mmdet")["why"]
    for name, word in MMDET.items():
        logged = logs["mmdet_coco"][f"coco/{task}_{word}"]
        # It rounds to three digits.
        assert elsewhere(numbers, "log of mmdet")["scores"][name] == pytest.approx(logged, abs=5.1e-4)
        # No image has more than 100 objects: here the official numbers are the same.
        assert numbers[name] == pytest.approx(logged, abs=5.1e-4)


def test_mmdets_masks_hold_boxes_that_are_not_scored():
    truth = read_truth(DATA / "instances.json")
    predictions = read_predictions(DATA / "mmdet_coco.segm.json", truth)
    assert predictions.kind == ("segm",) and predictions.writer == "mmdet"
    assert all("bbox" not in entry for entry in predictions.entries["segm"])
    assert "bbox was taken out of" in " ".join(predictions.notes)


def test_sizes_of_masks_are_not_those_of_their_boxes():
    numbers = score("mmdet_coco.segm.json", "instances.json", tasks=["segm"])["segm"]
    boxed = elsewhere(numbers, "the file as it is")
    assert "sizes" in boxed["why"]
    assert boxed["scores"]["AP"] == pytest.approx(numbers["AP"], abs=1e-12)
    assert abs(boxed["scores"]["APm"] - numbers["APm"]) > 0.01


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_mmdets_lvis_log_takes_mask_sizes_from_boxes(task, logs):
    numbers = score("mmdet_lvis", "lvis.json")[task]
    said = elsewhere(numbers, "the file as it is")["scores"] if task == "segm" else numbers
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
        assert said[name] == pytest.approx(logs["mmdet_lvis"][f"lvis/{task}_{name}"], abs=5.1e-4), name
    if task == "segm":
        assert abs(numbers["APm"] - said["APm"]) > 0.01


def test_detectron2s_one_file_is_boxes_and_masks(logs):
    result = score("detectron2/coco_instances_results.json", "instances.json")
    assert result["about"]["writer"] == "detectron2"
    for task in ("bbox", "segm"):
        for name in ("AP", "AP50", "AP75", "APs", "APm"):
            assert 100 * result[task][name] == pytest.approx(logs["detectron2_instances"][task][name], abs=1e-9)
        assert result[task]["APl"] == -1 and logs["detectron2_instances"][task]["APl"] is None
        for name, numbers in result[task]["per_class"].items():
            assert 100 * numbers["AP"] == pytest.approx(logs["detectron2_instances"][task][f"AP-{name}"], abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "log", "writer"),
    [
        ("mmdet_pan", "mmdet_panoptic", "mmdet"),
        ("detectron2_panoptic/predictions.json", "detectron2_panoptic", "detectron2"),
    ],
)
def test_panoptic_files(predictions, log, writer, logs):
    result = score(predictions, "panoptic.json")
    assert result["about"]["writer"] == writer
    logged = logs[log].get("panoptic_seg", logs[log])
    for name in ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"):
        value = logged.get(name, logged.get(f"coco_panoptic/{name}"))
        assert 100 * result["panoptic"][name] == pytest.approx(value, abs=1e-9), name


def test_detectron2s_panoptic_pictures_may_be_gone(tmp_path):
    (tmp_path / "predictions.json").write_text((DATA / "detectron2_panoptic/predictions.json").read_text())
    with pytest.raises(ValueError, match=r"000019.png lies in none of .*Detectron2 deletes its own"):
        evaluate(tmp_path / "predictions.json", DATA / "panoptic.json")


def test_mmsegs_cityscapes_log_is_of_categories(logs):
    result = score("cityscapes", "gtFine")
    assert result["about"]["kind"] == "cityscapes" and result["about"]["writer"] == "mmseg"
    numbers = result["semantic"]
    logged = logs["mmseg_cityscapes"]
    assert numbers["category_mIoU"] == pytest.approx(logged["averageScoreCategories"], abs=1e-12)
    assert numbers["category_miIoU"] == pytest.approx(logged["averageScoreInstCategories"], abs=1e-12)
    # The number of the board is another one, and it is told.
    assert numbers["mIoU"] < numbers["category_mIoU"] - 0.1
    said = elsewhere(numbers, "log of mmseg's CityscapesMetric")
    assert said["scores"] == {name: numbers[name] for name in ("category_mIoU", "category_miIoU")}


def test_detectron2s_masks_of_classes(logs):
    names = ["wall", "kite", "tile", "stain", "moss"]
    result = score("detectron2/sem_seg_predictions.json", "semantic", classes=names)
    numbers, logged = result["semantic"], logs["detectron2_semantic"]["sem_seg"]
    for name in names[:-1]:
        assert 100 * numbers["per_class"][name]["IoU"] == pytest.approx(logged[f"IoU-{name}"], abs=1e-9)
    assert 100 * numbers["aAcc"] == pytest.approx(logged["pACC"], abs=1e-9)
    assert 100 * numbers["fwIoU"] == pytest.approx(logged["fwIoU"], abs=1e-9)
    # Moss is predicted, but nowhere: a class of IoU 0, which Detectron2 leaves out.
    assert numbers["per_class"]["moss"]["IoU"] == 0
    assert 100 * elsewhere(numbers, "log of Detectron2")["scores"]["mIoU"] == pytest.approx(logged["mIoU"], abs=1e-9)
    assert 100 * numbers["mIoU"] == pytest.approx(logged["mIoU"] * 4 / 5, abs=1e-9)


def torch_samples(truth, found):
    """What mmdet's evaluator hands to a metric."""
    import torch
    from pycocotools import mask as coco_mask

    column = {category["id"]: index for index, category in enumerate(truth["categories"])}
    for image in truth["images"]:
        mine = [entry for entry in found if entry["image_id"] == image["id"]]
        boxes = torch.tensor([entry["bbox"] for entry in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = np.array([coco_mask.decode(entry["segmentation"]) for entry in mine])
        predicted = {
            "bboxes": boxes,
            "scores": torch.tensor([entry["score"] for entry in mine]),
            "labels": torch.tensor([column[entry["category_id"]] for entry in mine], dtype=torch.long),
            "masks": torch.tensor(masks.astype(bool)).reshape(-1, image["height"], image["width"]),
        }
        shape = (image["height"], image["width"])
        yield {"img_id": image["id"], "ori_shape": shape, "pred_instances": predicted}


def test_mmdet_scores_at_1000_detections(tmp_path):
    """More than 100 objects of a class in an image: all numbers of mmdet's log but AP are other ones."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmdet.evaluation import CocoMetric

    from tests.defocus_eval.drawn import result, write

    rng = np.random.default_rng(0)
    images = [{"id": 4, "file_name": "4.png", "height": 60, "width": 80}]
    masks = [np.zeros((60, 80), bool) for _ in range(130)]
    for number, mask in enumerate(masks):
        row, column = divmod(number, 13)
        mask[6 * row : 6 * row + 5, 6 * column : 6 * column + 5] = True
    found = [result(4, mask, rng.random(), 2, 6) for mask in masks]
    annotations = [
        {"id": number, "image_id": 4, "category_id": 2, "area": 25, "iscrowd": 0, "bbox": entry["bbox"]}
        | {"segmentation": entry["segmentation"]}
        for number, entry in enumerate(found, 1)
    ]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 2, "name": "kite"}]}
    file = write(tmp_path / "truth.json", truth)
    metric = CocoMetric(ann_file=str(file), metric=["bbox", "segm"], outfile_prefix=str(tmp_path / "run"))
    metric.dataset_meta = {"classes": ("kite",)}
    samples = list(torch_samples(truth, found))
    metric.process({}, samples)
    logged = metric.evaluate(len(samples))
    result = evaluate(tmp_path / "run", file, samples=0)
    for task in ("bbox", "segm"):
        said = elsewhere(result[task], "log of mmdet")
        assert "so only the recalls do" not in said["why"]
        for name, word in MMDET.items():
            assert said["scores"][name] == pytest.approx(logged[f"coco/{task}_{word}"], abs=5.1e-4)
        # All of the first 100 of 130 objects.
        assert result[task]["AP50"] == pytest.approx(77 / 101) and said["scores"]["AP50"] == pytest.approx(1)
        assert result[task]["AR100"] == pytest.approx(100 / 130) and said["scores"]["AR1000"] == 1


def test_mmsegs_maps_of_ade20k_may_lack_the_one(tmp_path):
    """IoUMetric adds 1 only if a sample says so: both outputs are read as the same labels."""
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    import torch
    from mmseg.evaluation import IoUMetric
    from PIL import Image

    torch.manual_seed(0)
    (tmp_path / "truth").mkdir()
    samples = []
    for number in range(2):
        labels = torch.randint(0, 6, (1, 12, 16))
        name = f"ADE_val_0000000{number}"
        Image.fromarray((labels[0] + 1).byte().numpy()).save(tmp_path / "truth" / f"{name}.png")
        found = torch.where(torch.rand(1, 12, 16) < 0.7, labels, (labels + 1) % 6)
        samples.append({"img_path": f"images/{name}.jpg", "pred_sem_seg": {"data": found}})
        samples[-1]["gt_sem_seg"] = {"data": labels}
    results = {}
    for key in (None, "reduce_zero_label"):
        folder = tmp_path / str(key)
        metric = IoUMetric(output_dir=str(folder))
        metric.dataset_meta = {"classes": [str(label) for label in range(150)]}
        metric.process({}, [{**sample, **({key: True} if key else {})} for sample in samples])
        logged = metric.compute_metrics(metric.results)
        results[key] = evaluate(folder, tmp_path / "truth", samples=0)
        numbers = results[key]["semantic"]
        assert results[key]["about"]["kind"] == "ade20k"
        for name in ("mIoU", "mAcc", "aAcc"):
            assert 100 * numbers[name] == pytest.approx(logged[name], abs=0.0051), name
        assert numbers["score"] == pytest.approx((numbers["mIoU"] + numbers["aAcc"]) / 2)
    assert results[None]["semantic"] == results["reduce_zero_label"]["semantic"]
    assert "reduce_zero_label" in " ".join(results[None]["about"]["notes"])
    assert not results["reduce_zero_label"]["about"]["notes"]


def test_train_ids_of_cityscapes_are_read_as_their_labels(tmp_path):
    from PIL import Image

    from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID

    expected = score("cityscapes", "gtFine")["semantic"]
    for path in (DATA / "cityscapes").iterdir():
        labels = np.array(Image.open(path))
        train_ids = np.searchsorted(LABEL_OF_TRAIN_ID, labels).astype(np.uint8)
        assert (LABEL_OF_TRAIN_ID[train_ids] == labels).all()
        Image.fromarray(train_ids).save(tmp_path / path.name)
    result = evaluate(tmp_path, DATA / "gtFine", samples=0)
    assert result["semantic"] == expected
    assert "train ids" in " ".join(result["about"]["notes"])

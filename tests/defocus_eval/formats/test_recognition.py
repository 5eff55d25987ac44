"""Which kind a file is, by what is in it; files that are none are refused with what to give instead."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_predictions, read_truth
from tests.defocus_eval.drawn import save, write

DATA = Path("tests/data/evaluation")


@pytest.mark.parametrize(
    ("name", "kind", "images"),
    [
        ("instances.json", "instances", 5),
        ("lvis.json", "lvis", 5),
        ("panoptic.json", "panoptic", 5),
        ("gtFine", "cityscapes", 5),
        ("semantic", "semantic", 5),
    ],
)
def test_truth_is_known_by_its_content(name, kind, images):
    truth = read_truth(DATA / name)
    assert (truth.kind, len(truth.images)) == (kind, images)
    assert all(path.is_file() for path in truth.files.values())
    assert bool(truth.files) == (kind not in ("instances", "lvis"))


def test_a_test_set_has_images_alone(tmp_path):
    content = json.loads((DATA / "instances.json").read_text())
    del content["annotations"]
    assert read_truth(write(tmp_path / "info.json", content)).kind == "images"


def test_lvis_needs_what_was_looked_for(tmp_path):
    content = json.loads((DATA / "lvis.json").read_text())
    del content["images"][2]["neg_category_ids"]
    with pytest.raises(InputError, match=r"image 3 has no list neg_category_ids"):
        read_truth(write(tmp_path / "lvis.json", content))
    content = json.loads((DATA / "lvis.json").read_text())
    content["categories"][1]["frequency"] = "often"
    with pytest.raises(InputError, match=r"category 2 \(tile\) has no frequency r, c or f"):
        read_truth(write(tmp_path / "lvis.json", content))


def test_lvis_images_are_named_by_their_address():
    assert read_truth(DATA / "lvis.json").images[11]["file_name"] == "val2017/bochum_000000_000019.png"


@pytest.mark.parametrize(
    ("predictions", "annotations", "kind"),
    [
        ("mmdet_coco", "instances.json", ("bbox", "segm")),
        ("mmdet_coco.segm.json", "instances.json", ("segm",)),
        ("mmdet_lvis", "lvis.json", ("bbox", "segm")),
        ("mmdet_pan", "panoptic.json", ("panoptic",)),
        ("detectron2_panoptic/predictions.json", "panoptic.json", ("panoptic",)),
        ("cityscapes", "gtFine", ("semantic",)),
        ("detectron2/sem_seg_predictions.json", "semantic", ("semantic",)),
    ],
)
def test_predictions_are_known_by_their_content(predictions, annotations, kind):
    assert read_predictions(DATA / predictions, read_truth(DATA / annotations)).kind == kind


def test_a_prefix_finds_what_fits_the_truth(tmp_path):
    for name in ("mmdet_coco.bbox.json", "mmdet_pan.panoptic.json"):
        (tmp_path / f"run.{name.split('.', 1)[1]}").write_text((DATA / name).read_text())
    assert read_predictions(tmp_path / "run", read_truth(DATA / "instances.json")).kind == ("bbox",)
    with pytest.raises(InputError, match=r"cannot read .*other"):
        read_predictions(tmp_path / "other", read_truth(DATA / "instances.json"))


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        ("mmdet_coco.bbox.json", "panoptic.json", r"give the instances annotations"),
        ("mmdet_pan.panoptic.json", "instances.json", r"is no panoptic ground truth"),
        ("cityscapes", "instances.json", r"is a folder, .*instances.json no folder of label maps"),
        ("detectron2/sem_seg_predictions.json", "instances.json", r"give the folder of the true label maps"),
        ("instances.json", "instances.json", r"holds an object without panoptic annotations"),
        ("mmdet_coco.bbox.json", "gtFine", r"give the instances annotations"),
    ],
)
def test_what_does_not_belong_together_is_refused(predictions, annotations, message):
    truth = read_truth(DATA / annotations)
    with pytest.raises(InputError, match=message):
        read_predictions(DATA / predictions, truth)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty"),
        (b"{", r"is not a JSON file"),
        (b"\xff\xfe\x00", r"is not a text file"),
        (b"3", r"holds a int, not a list"),
    ],
)
def test_files_that_are_no_json(content, message, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "run.json", read_truth(DATA / "instances.json"))


@pytest.mark.parametrize("name", ["results.pkl", "instances_predictions.pth"])
def test_pickles_of_trainers_name_the_file_to_give(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"outfile_prefix.*coco_instances_results.json"):
        read_predictions(tmp_path / name, read_truth(DATA / "instances.json"))


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere.json"):
        read_truth(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match=r"holds no PNG files"):
        read_truth(tmp_path)


def test_plain_label_maps_take_names_and_a_label_to_ignore(tmp_path):
    save(tmp_path / "a" / "x.png", np.zeros((3, 4), np.uint8))
    truth = read_truth(tmp_path, classes=["wall", "tile"], ignore_label=7)
    assert (truth.categories, truth.ignore_label) == ({0: "wall", 1: "tile"}, 7)
    assert truth.images[1] == {"id": 1, "file_name": "x.png", "width": 4, "height": 3}


def test_ade20k_has_150_classes(tmp_path):
    save(tmp_path / "ADE_val_00000001.png", np.zeros((3, 4), np.uint8))
    truth = read_truth(tmp_path)
    assert (truth.kind, truth.ignore_label, list(truth.categories)) == ("ade20k", 0, list(range(1, 151)))
    with pytest.raises(InputError, match=r"ADE20K has 150 classes, 2 names were given"):
        read_truth(tmp_path, classes=["wall", "tile"])

"""Panoptic JSON and its PNGs: found where they lie, each image answered once."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_predictions, read_truth
from tests.defocus_eval.drawn import write

DATA = Path("tests/data/evaluation")


def test_panoptic_pictures_are_searched_where_they_lie(tmp_path):
    shutil.copytree(DATA / "panoptic", tmp_path / "panoptic" / "val")
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "panoptic_val.json"
    path.write_text((DATA / "panoptic.json").read_text())
    assert read_truth(path).folder == tmp_path / "panoptic" / "val"
    (tmp_path / "panoptic" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"lies in none of .*--annotations-folder"):
        read_truth(path)
    assert read_truth(path, tmp_path / "elsewhere").folder == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop(), r"no annotation for 1 of 5 images, the first of id 23"),
        (lambda a: a.append(a[0]), r"annotation 6: image 11 was answered before"),
        (lambda a: a[1].pop("file_name"), r"annotation 2 has no file_name"),
        (lambda a: a[1].update(image_id=5), r"annotation 2: image_id 5 is not among the images"),
        (lambda a: a[1]["segments_info"][0].pop("id"), r"annotation 2: a segment has no id"),
        (lambda a: a[1]["segments_info"][0].update(category_id=4), r"annotation 2: category_id 4 is not among"),
        (
            lambda a: a[1]["segments_info"].append(a[1]["segments_info"][0]),
            r"annotation 2: segment \d+ stands .* twice",
        ),
    ],
)
def test_broken_panoptic_predictions_are_refused(change, message, tmp_path):
    content = json.loads((DATA / "mmdet_pan.panoptic.json").read_text())
    change(content["annotations"])
    path = write(tmp_path / "run.panoptic.json", content)
    with pytest.raises(InputError, match=message):
        read_predictions(path, read_truth(DATA / "panoptic.json"), DATA / "mmdet_pan.panoptic")


def test_panoptic_truth_says_what_things_are(tmp_path):
    content = json.loads((DATA / "panoptic.json").read_text())
    del content["categories"][1]["isthing"]
    with pytest.raises(InputError, match=r"category 2 \(tile\) has no isthing"):
        read_truth(write(tmp_path / "panoptic.json", content), DATA / "panoptic")

"""Folders of label maps, and masks of classes: each image answered once, at its size."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import prediction_maps, read_predictions, read_truth
from tests.defocus_eval.drawn import save, write

DATA = Path("tests/data/evaluation")


@pytest.fixture
def folders(tmp_path):
    """Two images below cities, and their predictions."""
    for city, name in (("aachen", "aachen_000001_000019"), ("ulm", "ulm_000002_000019")):
        save(tmp_path / "truth" / city / f"{name}_gtFine_labelIds.png", np.full((6, 8), 7, np.uint8))
        save(tmp_path / "truth" / city / f"{name}_gtFine_color.png", np.zeros((6, 8, 3), np.uint8))
        save(tmp_path / "found" / f"{name}_leftImg8bit.png", np.full((6, 8), 7, np.uint8))
    return tmp_path


def read(folder):
    return read_predictions(folder / "found", read_truth(folder / "truth"))


def test_images_are_found_by_city_sequence_and_frame(folders):
    predictions = read(folders)
    assert [path.name for path in predictions.files.values()] == [
        "aachen_000001_000019_leftImg8bit.png",
        "ulm_000002_000019_leftImg8bit.png",
    ]


def test_an_image_without_a_map_is_refused(folders):
    (folders / "found" / "ulm_000002_000019_leftImg8bit.png").unlink()
    with pytest.raises(InputError, match=r"no PNG for 1 of 2 images, the first ulm_000002_000019_gtFine_labelIds.png"):
        read(folders)


def test_an_image_with_two_maps_is_refused(folders):
    save(folders / "found" / "again" / "ulm_000002_000019.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"both answer ulm_000002_000019_gtFine_labelIds.png"):
        read(folders)


def test_a_map_of_another_size_is_refused(folders):
    save(folders / "found" / "ulm_000002_000019_leftImg8bit.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(InputError, match=r"is 6×8, its ground truth 8×6"):
        read(folders)


def test_strangers_are_told_and_left_out(folders):
    save(folders / "found" / "bonn_000002_000019.png", np.zeros((6, 8), np.uint8))
    predictions = read(folders)
    assert len(predictions.files) == 2 and "1 PNGs belong to no image" in predictions.notes[0]


def test_truth_in_train_ids_is_told(folders):
    for path in list((folders / "truth").rglob("*labelIds.png")):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    truth = read_truth(folders / "truth")
    assert truth.kind == "semantic" and truth.ignore_label == 255 and len(truth.images) == 2
    assert truth.categories[0] == "road" and truth.categories[18] == "bicycle" and "train ids" in truth.notes[0]


def test_masks_of_classes_become_maps():
    truth = read_truth(DATA / "semantic")
    predictions = read_predictions(DATA / "detectron2/sem_seg_predictions.json", truth)
    content = json.loads((DATA / "detectron2/sem_seg_predictions.json").read_text())
    from pycocotools import mask as coco_mask

    for image_id, labels in prediction_maps(predictions, truth):
        stem = Path(truth.images[image_id]["file_name"]).stem
        for entry in content:
            if Path(entry["file_name"]).stem == stem:
                assert (labels[coco_mask.decode(entry["segmentation"]).astype(bool)] == entry["category_id"]).all()
        assert labels.max() < 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[1].pop("category_id"), r"entry 2 lacks category_id"),
        (lambda c: c[1].update(segmentation=[[1, 2]]), r"entry 2 lacks category_id or a run-length code"),
        (lambda c: c[1].update(file_name="x/nobody.jpg"), r"entry 2: x/nobody.jpg belongs to no image"),
        (lambda c: c[1].update(category_id=999), r"entry 2: category_id 999 does not lie between 0 and 255"),
        (lambda c: c[1]["segmentation"].update(size=[3, 4]), r"entry 2: its mask is 4×3, its image 64×64"),
        (lambda c: c.clear() or c.append({"file_name": "bochum_000000_000019.jpg", "category_id": 0, "segmentation":
            {"size": [64, 64], "counts": "PP4"}}), r"no entry for 4 of 5 images"),
    ],
)  # fmt: skip
def test_broken_masks_of_classes_are_refused(change, message, tmp_path):
    content = json.loads((DATA / "detectron2/sem_seg_predictions.json").read_text())
    change(content)
    with pytest.raises(InputError, match=message):
        read_predictions(write(tmp_path / "sem_seg_predictions.json", content), read_truth(DATA / "semantic"))

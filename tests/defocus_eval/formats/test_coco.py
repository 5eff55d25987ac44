"""COCO's instances and results: what is taken, mended and refused."""

import copy

import numpy as np
import pytest

coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")

from defocus_eval.errors import InputError
from defocus_eval.formats import read_predictions, read_truth
from tests.defocus_eval.drawn import to_rle, write

TRUTH = {
    "images": [{"id": 7, "file_name": "7.jpg", "height": 30, "width": 40}, {"id": 9, "height": 20, "width": 20}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 8], "area": 60.0}],
    "categories": [{"id": 2, "name": "kite"}, {"id": 5, "name": "tile"}],
}
ENTRY = {"image_id": 7, "bbox": [1.5, 2, 9, 8], "score": 0.5, "category_id": 2}
MASK = np.zeros((30, 40), np.uint8)
MASK[2:9, 1:11] = 1
CODE = to_rle(MASK)


def changed(content, change):
    content = copy.deepcopy(content)
    change(content)
    return content


@pytest.fixture
def truth(tmp_path):
    return read_truth(write(tmp_path / "truth.json", TRUTH))


@pytest.fixture
def read(tmp_path, truth):
    return lambda entries: read_predictions(write(tmp_path / "run.json", entries), truth)


def test_what_is_not_said_is_no_crowd(truth):
    assert truth.kind == "instances" and truth.categories == {2: "kite", 5: "tile"}
    assert truth.data["annotations"][0]["iscrowd"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("images"), r"no list 'images'"),
        (lambda t: t.update(categories=[]), r"lists no categories"),
        (lambda t: t["images"][1].pop("id"), r"images 2 has no id"),
        (lambda t: t["categories"][0].pop("name"), r"categories 1 has no name"),
        (lambda t: t["images"][1].update(id=7), r"id 7 stands twice among its images"),
        (lambda t: t["images"][1].update(id="9"), r"id '9' among its images is no whole number"),
        (lambda t: t["annotations"][0].pop("area"), r"annotation 1 has no area"),
        (lambda t: t["annotations"][0].update(image_id=8), r"annotation 1: image_id 8 is not listed"),
        (lambda t: t["annotations"][0].update(category_id=3), r"annotation 1: category_id 3 is not listed"),
        (lambda t: t["annotations"].append(t["annotations"][0]), r"annotation 2: id 1 stands there twice"),
    ],
)
def test_broken_truth_is_refused(change, message, tmp_path):
    path = write(tmp_path / "truth.json", changed(TRUTH, change))
    with pytest.raises(InputError, match=message):
        read_truth(path)


@pytest.mark.parametrize(
    ("keys", "masks", "writer", "kind"),
    [
        ("image_id bbox score category_id", False, "mmdet", ("bbox",)),
        ("image_id bbox score category_id segmentation", True, "mmdet", ("segm",)),
        ("image_id category_id bbox score", False, "detectron2", ("bbox",)),
        ("image_id category_id bbox score segmentation", True, "detectron2", ("bbox", "segm")),
        ("score image_id category_id bbox", False, "unknown", ("bbox",)),
        ("score image_id category_id segmentation bbox", True, "unknown", ("bbox", "segm")),
        ("image_id category_id segmentation score", True, "unknown", ("segm",)),
    ],
)
def test_writers_are_known_by_the_order_of_their_keys(keys, masks, writer, kind, read):
    values = {**ENTRY, "segmentation": CODE}
    predictions = read([{key: values[key] for key in keys.split()}])
    assert (predictions.writer, predictions.kind) == (writer, kind)
    assert all("segmentation" not in entry for entry in predictions.entries.get("bbox", []))
    assert all("bbox" not in entry for entry in predictions.entries.get("segm", []))
    boxed = masks and "bbox" in keys.split()
    assert (predictions.box_areas is not None) == boxed and bool(predictions.notes) == boxed
    if boxed:
        assert predictions.box_areas.tolist() == [72]


def test_entries_are_told_apart_and_keep_their_numbers(read):
    """A file of boxes with a mask here and there, as no trainer writes it."""
    masked = {key: {**ENTRY, "segmentation": CODE}[key] for key in ("image_id", "category_id", "score", "segmentation")}
    predictions = read([ENTRY, masked, ENTRY])
    assert [len(predictions.entries[task]) for task in ("bbox", "segm")] == [2, 1]
    assert predictions.numbers["bbox"](1).endswith("run.json, entry 3")
    assert predictions.numbers["segm"](0).endswith("run.json, entry 2")


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 2, 11, 2, 11, 9, 1, 9]],
        {"size": [30, 40], "counts": np.diff(np.flatnonzero(np.diff(MASK.T.ravel(), prepend=2, append=2))).tolist()},
        CODE,
    ],
    ids=["polygons", "counts", "code"],
)
def test_every_form_of_mask_becomes_a_code(mask, read):
    predictions = read([{"image_id": 7, "category_id": 2, "score": 1, "segmentation": mask}])
    code = predictions.entries["segm"][0]["segmentation"]
    assert (coco_mask.decode(code) == MASK).all()
    assert bool(predictions.notes) == (mask is not CODE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("score"), r"entry 2 has no score"),
        (lambda e: e.pop("bbox"), r"entry 2 has no bbox or segmentation"),
        (lambda e: e.update(image_id=8), r"entry 2: image_id 8 does not occur in .*truth.json"),
        (lambda e: e.update(category_id=1), r"entry 2: category_id 1 does not occur"),
        (lambda e: e.update(image_id="7"), r"entry 2: image_id '7' is no whole number"),
        (lambda e: e.update(category_id=True), r"entry 2: category_id True is no whole number"),
        (lambda e: e.update(score="0.5"), r"entry 2: score '0.5' is not a number"),
        (lambda e: e.update(score=None), r"entry 2: score None is not a number"),
        (lambda e: e.update(score=float("nan")), r"entry 2: score is not finite"),
        (lambda e: e.update(bbox=[1, 2, 3]), r"entry 2: bbox \[1, 2, 3\] is not 4 numbers"),
        (lambda e: e.update(bbox=[1, 2, 3, "4"]), r"entry 2: bbox .* is not 4 numbers"),
        (lambda e: e.update(bbox=7), r"entry 2: bbox 7 is not 4 numbers"),
        (lambda e: e.update(bbox=[1, 2, -3, 4]), r"entry 2: bbox \[1, 2, -3, 4\] is no box"),
        (lambda e: e.update(bbox=[1, 2, float("inf"), 4]), r"entry 2: bbox .* is no box"),
        (
            lambda e: e.update(segmentation=to_rle(MASK.T)),
            r"entry 2: its mask has size \[40, 30\], its image \[30, 40\]",
        ),
        (lambda e: e.update(segmentation=[[1, 2, 3, 4]]), r"entry 2: segmentation is no mask \(a polygon has fewer"),
        (lambda e: e.update(segmentation=[]), r"entry 2: segmentation is no mask"),
        (lambda e: e.update(segmentation={"size": [30, 40]}), r"entry 2: segmentation is no mask"),
        (lambda e: e.update(segmentation={"size": [30, 40], "counts": [3]}), r"entry 2: .*counts do not add up"),
    ],
)
def test_broken_entries_are_refused(change, message, read):
    with pytest.raises(InputError, match=message):
        read([ENTRY, changed(ENTRY, change), ENTRY])


def test_what_is_no_entry_is_refused(read):
    with pytest.raises(InputError, match=r"entry 2 is no object"):
        read([ENTRY, 3])
    with pytest.raises(InputError, match=r"holds no predictions"):
        read([])

"""Pictures of detections and training curves: what is drawn, how logs are read, what is refused."""

import json
import sys

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
coco_mask = pytest.importorskip("pycocotools.mask")
from defocus_commands import show_results as tool

POLYGON = [10, 10, 30, 10, 30, 25, 10, 25]


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def training_lines(first, last, epoch_length=None, interval=10):
    for step in range(first, last + 1, interval):
        line = {"lr": 1e-4, "loss": 100.0 / step, "iter": step, "step": step}
        yield line if epoch_length is None else {**line, "epoch": (step - 1) // epoch_length + 1}


def evaluation(step, score):
    return {"coco/bbox_mAP": score, "coco/bbox_mAP_50": 1.5 * score, "coco/bbox_mAP_l": -1.0, "step": step}


@pytest.fixture
def files(tmp_path):
    """Five images with two objects each, and a prediction of every object."""
    rng = np.random.default_rng(0)
    names = [f"{i:03d}.png" for i in range(1, 6)]
    (tmp_path / "images").mkdir()
    images, annotations, predictions = [], [], []
    for image_id, name in enumerate(names, 1):
        size = (60, 40) if image_id % 2 else (50, 60)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(tmp_path / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        for category_id, box in ((3, [10, 10, 20, 15]), (7, [5, 20, 30, 12])):
            found = {"image_id": image_id, "category_id": category_id, "bbox": box}
            annotations.append({**found, "id": len(annotations) + 1, "area": box[2] * box[3], "iscrowd": 0})
            predictions.append({**found, "score": 0.9 if category_id == 3 else 0.3})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return {
        "annotations": write_json(tmp_path / "truth.json", truth),
        "images": tmp_path / "images",
        "predictions": write_json(tmp_path / "val.bbox.json", predictions),
        "out": tmp_path / "out",
    }


def draw_predictions(files, **changes):
    picture = tool.show_results(**{**files, **changes})[0]
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def with_predictions(files, predictions):
    return {"predictions": write_json(files["predictions"].with_name("other.json"), predictions)}


def test_pictures_are_written(files, tmp_path):
    log = write_log(tmp_path / "scalars.json", [*training_lines(10, 100), evaluation(100, 0.2)])
    written = tool.show_results(**files, logs=[log])
    assert written == [files["out"] / "predictions.png", files["out"] / "curves.png"]
    for path in written:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 20


def test_without_a_log_there_are_no_curves(files):
    assert tool.show_results(**files) == [files["out"] / "predictions.png"]


def test_the_grid_grows_with_the_images(files):
    one, two, four, five, nine = (draw_predictions(files, max_images=n).shape for n in (1, 2, 4, 5, 9))
    assert two[0] == one[0] and 1.9 * one[1] < two[1] < 2 * one[1]
    assert four[1] == two[1] and four[0] > 1.9 * two[0]
    assert five[1] > four[1] and nine == five


def test_objects_are_drawn_on_their_side(files):
    both, one, none = (draw_predictions(files, max_images=1, score_threshold=t) for t in (0.2, 0.5, 1.0))
    middle = both.shape[1] // 2
    # Less than the heading, which names the threshold.
    below = slice(60, None)
    assert (both[below, :middle] == none[below, :middle]).all()
    changed = [(picture[below, middle:] != both[below, middle:]).any(-1).sum() for picture in (one, none)]
    assert 500 < changed[0] < changed[1]


def test_every_form_of_mask_is_drawn_alike(files):
    rle = coco_mask.merge(coco_mask.frPyObjects([POLYGON], 40, 60))
    flat = coco_mask.decode(rle).reshape(-1, order="F")
    lengths = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, len(flat)]).tolist()
    forms = [
        [POLYGON],
        {"size": [40, 60], "counts": lengths},
        {"size": [40, 60], "counts": rle["counts"].decode()},
    ]
    result = {"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [10, 10, 20, 15]}
    plain = draw_predictions(files, **with_predictions(files, [result]))
    drawn = [draw_predictions(files, **with_predictions(files, [{**result, "segmentation": f}])) for f in forms]
    del result["bbox"]
    drawn.append(draw_predictions(files, **with_predictions(files, [{**result, "segmentation": forms[0]}])))
    assert all((picture == drawn[0]).all() for picture in drawn)
    assert (plain != drawn[0]).any()


def test_a_mask_of_another_size_is_refused(files):
    mask = {"size": [40, 61], "counts": [40 * 61]}
    wrong = [{"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [1, 1, 9, 9], "segmentation": mask}]
    with pytest.raises(ValueError, match="61×40 pixels does not fit its image of 60×40"):
        tool.show_results(**{**files, **with_predictions(files, wrong)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations", None, "cannot read .*No such file.*; give the COCO instances file"),
        ("annotations", "", "is empty"),
        ("annotations", "[1]", "no list 'images'"),
        ("annotations", '{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ("predictions", None, "cannot read .*; give the file that mmdet's CocoMetric writes"),
        ("predictions", "", "is empty"),
        ("predictions", "{", "is not a JSON file"),
        ("predictions", "{}", "holds a dict, not a list"),
        ("predictions", "[]", "holds no predictions"),
        ("predictions", "[3]", "entry 1 has no image_id, category_id, score, bbox or segmentation"),
        ("predictions", '[{"image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}]', "entry 1 has no score"),
        (
            "predictions",
            '[{"image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1}]',
            "image_id 99 does not occur in .*truth.json",
        ),
        (
            "predictions",
            '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]',
            "category_id 1 does not occur",
        ),
        ("log", None, "cannot read .*; give the vis_data/scalars.json"),
        ("log", "", "is empty"),
        ("log", "[1, 2]", "line 1 holds a list"),
        ("log", "2025/01/01 - mmengine - INFO\n", "line 1 is not JSON"),
        ("log", '{"acc": 1, "step": 3}\n', "neither finite training losses nor COCO evaluations"),
    ],
)
def test_files_that_cannot_be_used(files, tmp_path, name, content, message):
    path = files.get(name, tmp_path / "log.json")
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        tool.show_results(**files, logs=[path] if name == "log" else [])
    assert str(path) in str(caught.value)
    assert not files["out"].exists()


def test_images_that_cannot_be_used(files):
    with pytest.raises(ValueError, match=r"001\.png does not exist; --images"):
        tool.show_results(**{**files, "images": files["out"]})
    (files["images"] / "001.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"001\.png cannot be read as an image"):
        tool.show_results(**files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"score_threshold": 40}, "between 0 and 1, got 40"), ({"max_images": 0}, "at least 1, got 0")],
)
def test_arguments_out_of_range(files, changes, message):
    with pytest.raises(ValueError, match=message):
        tool.show_results(**files, **changes)


def test_program(files, tmp_path, monkeypatch, capsys):
    log = write_log(tmp_path / "scalars.json", training_lines(10, 100))
    arguments = ["show_results.py", *(f"--{name}={value}" for name, value in files.items())]
    monkeypatch.setattr(sys, "argv", [*arguments, "--log", str(log), str(log), "--max-images", "1"])
    tool.main()
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {files['out'] / name}" for name in ("predictions.png", "curves.png")
    ]
    files["predictions"].unlink()
    with pytest.raises(SystemExit):
        tool.main()
    assert "cannot read" in capsys.readouterr().err

"""What is shown of the images: which ones, what matches what, and pictures that say what the files say."""

import base64
import io
import json

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from defocus_eval.errors import InputError
from defocus_eval.formats import Predictions, Truth, read_predictions, read_truth
from defocus_eval.pages import gallery, palette, pictures


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def random_boxes(rng, count, categories=2):
    records = []
    for number in range(count):
        box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 50, 2)]
        records.append({"id": number + 1, "image_id": 1, "category_id": int(rng.integers(categories)) + 1, "bbox": box})
    return records


def matches_of_pycocotools(true, found):
    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "annotations": true, "categories": [{"id": 1}, {"id": 2}]}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes([{**record} for record in found]), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    matches = {}
    for image in filter(None, evaluation.evalImgs):
        for detection, match, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0]):
            # Detections are numbered from 1 in their order, and so are the objects.
            matches[detection - 1] = -2 if ignored else int(match) - 1
    return [matches[index] for index in range(len(found))]


def test_matches_are_those_of_pycocotools():
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        true = random_boxes(rng, 12)
        for record in true:
            record |= {"area": record["bbox"][2] * record["bbox"][3], "iscrowd": int(rng.random() < 0.2)}
        found = sorted(({**r, "score": rng.random()} for r in random_boxes(rng, 30)), key=lambda r: -r["score"])
        matches = [match for match, _ in gallery.match_objects(true, found, None)]
        assert matches == matches_of_pycocotools(true, found)
        seen |= {min(match, 0) for match in matches}
    assert seen == {-2, -1, 0}


def test_the_iou_is_that_of_the_match_or_the_best_there_is():
    true = [{"category_id": 1, "bbox": [0, 0, 10, 10]}, {"category_id": 2, "bbox": [0, 0, 10, 10]}]
    found = [{"category_id": 1, "bbox": box} for box in ([0, 0, 10, 8], [0, 0, 10, 9], [0, 0, 10, 2], [50, 50, 5, 5])]
    assert gallery.match_objects(true, found, None) == [
        (0, pytest.approx(0.8)),
        (-1, pytest.approx(0.9)),
        (-1, pytest.approx(0.2)),
        (-1, 0.0),
    ]
    assert gallery.match_objects([], found[:1], None) == [(-1, 0.0)]


def test_worst_best_and_most_changed_images():
    before = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.5}
    after = {1: 0.5, 2: 0.2, 3: 0.9, 4: 0.5}
    assert gallery.choose_images([after], {1: 3, 4: 8}, 3) == {"worst": [2, 4, 1], "best": [3, 4, 1]}
    assert gallery.choose_images([before, after], {}, 2) == {"most changed": [3, 2], "worst": [2, 1], "best": [3, 1]}


def test_masks_shrink_with_their_image():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    for size, expected in (((60, 40), mask), ((30, 20), mask[::2, ::2])):
        counts = pictures.shrink_mask(code, size)
        assert isinstance(counts, str)
        found = coco_mask.decode({"size": [size[1], size[0]], "counts": counts.encode()})
        np.testing.assert_array_equal(found, expected)


def test_label_maps_become_pictures_of_their_colours():
    labels = np.array([[0, 1, 7], [255, 7, 0]], np.uint8)
    picture = decode(pictures.label_picture(labels, {1: (10, 20, 30), 7: (40, 50, 60)}, (6, 4)))
    pixels = np.asarray(picture.convert("RGBA"))
    assert pixels.shape == (4, 6, 4)
    small = pixels[::2, ::2]
    np.testing.assert_array_equal(small[..., 3] > 0, (labels == 1) | (labels == 7))
    assert small[0, 1].tolist() == [10, 20, 30, 255] and small[1, 1].tolist() == [40, 50, 60, 255]


def test_wrong_pixels_are_marked_where_the_truth_counts():
    truth, found = np.array([[0, 1, 255, 1]]), np.array([[0, 0, 1, 1]])
    pixels = np.asarray(decode(pictures.wrong_picture(truth, found, [0, 1], (4, 1))).convert("RGBA"))
    assert (pixels[0, :, 3] > 0).tolist() == [False, True, False, False]
    assert tuple(pixels[0, 1, :3]) == pictures.WRONG


def test_segments_have_the_colour_of_their_category_and_a_rim():
    segments = np.zeros((4, 9), np.uint32)
    segments[:, 3:6], segments[:, 6:] = 300, 70_000
    picture = decode(pictures.segment_picture(segments, {300: 1, 70_000: 1}, {1: (1, 2, 3)}, (9, 4)))
    pixels = np.asarray(picture.convert("RGBA"))
    assert (pixels[..., 3] > 0).all(0).tolist() == [False] * 3 + [True] * 6
    inside = (pixels[..., :3] == (1, 2, 3)).all((0, -1))
    # The rims of two segments of one category tell them apart.
    assert inside.tolist() == [False, False, False, False, True, True, False, True, True]


def test_no_two_categories_share_a_colour():
    colors = palette.category_colors({0: "background", **{i: f"class {i}" for i in range(1, 1204)}})
    assert len(set(colors.values())) == 1204 and colors[0] == palette.BACKGROUND
    assert all(0 <= value <= 255 for color in colors.values() for value in color)


def test_images_are_found_by_name_or_by_what_label_maps_are_called(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("x.jpg", "a/b/zurich_000001_000019_leftImg8bit.png", "a/y.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    records = {1: {"file_name": "y.png"}, 2: {"file_name": "zurich_000001_000019_gtFine_labelIds.png"}}
    assert pictures.find_images(tmp_path, records) == {
        1: tmp_path / "a/y.jpg",
        2: tmp_path / "a/b/zurich_000001_000019_leftImg8bit.png",
    }
    assert pictures.find_images(tmp_path, {5: {"file_name": "x.jpg"}}) == {5: tmp_path / "x.jpg"}
    with pytest.raises(InputError, match=r"holds no image for w\.png; --images"):
        pictures.find_images(tmp_path, {1: {"file_name": "w.png"}})
    with pytest.raises(InputError, match="nowhere is no folder"):
        pictures.find_images(tmp_path / "nowhere", records)


def test_large_images_are_made_small(tmp_path):
    Image.new("RGB", (1280, 640), (200, 30, 30)).save(tmp_path / "large.jpg")
    text, size, original = pictures.read_small(tmp_path / "large.jpg", 320)
    picture = decode(text)
    assert picture.format == "JPEG" and picture.size == size == (320, 160) and original == (1280, 640)
    assert np.abs(np.asarray(picture).astype(int) - (200, 30, 30)).max() < 8
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read as an image"):
        pictures.read_small(tmp_path / "broken.jpg", 320)


def test_pictures_shrink_until_all_of_them_fit(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    truth = Truth("instances", tmp_path, {"annotations": []}, {1: "cat"}, {})
    truth.images.update({i: {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in (1, 2)})
    for image_id in truth.images:
        noise = rng.integers(0, 255, (640, 640, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{image_id}.jpg")
    found = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [64, 128, 320, 64]}]
    run = Predictions(("bbox",), "unknown", tmp_path, {"bbox": found})
    values = [{1: 0.5, 2: 0.5}]
    sizes = {}
    for limit in (10_000_000, 400_000):
        monkeypatch.setattr(gallery, "MOST_CHARACTERS", limit)
        made = gallery.build_gallery(truth, [run], ["run"], tmp_path, {"best": [1, 2]}, values, "AP")
        assert sum(len(text) for _, text in made["files"].values()) <= limit
        first = made["items"][0]
        sizes[limit] = first["width"]
        scale = first["width"] / 640
        assert first["found"][0][0]["box"] == pytest.approx([64 * scale, 128 * scale, 320 * scale, 64 * scale], abs=0.1)
    assert sizes[10_000_000] == 640 and sizes[400_000] < 640


def test_labels_are_shown_as_the_scores_read_them(tmp_path):
    """ADE20K's labels are 1 to 150; a trainer that writes 0 to 149 means the same, and nothing is wrong."""
    labels = np.full((8, 8), 17, np.uint8)
    labels[:4] = 1
    for folder, values in (("truth", labels), ("found", labels - 1)):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "ADE_val_00000001.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "ADE_val_00000001.jpg")
    truth = read_truth(tmp_path / "truth")
    run = read_predictions(tmp_path / "found", truth)
    made = gallery.build_gallery(truth, [run], ["run"], tmp_path, {"best": [1]}, [{1: 1.0}], "mIoU")
    (item,) = made["items"]
    assert [made["names"][index] for index in item["classes"]] == ["1", "17"]
    shown = [np.asarray(decode(made["files"][key][1]).convert("RGBA")) for key in item["overlays"]]
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not shown[2][..., 3].any()


def test_a_maker_of_segments_takes_each_run_by_its_own_ids(tmp_path):
    """The same segments under other ids look the same; a category that one run alone has is in the legend."""
    content = {"images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}]}
    content["categories"] = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]
    ids = {"truth": (3, 4), "a": (300, 70_000), "b": (5, 5)}
    for name, (upper, lower) in ids.items():
        segments = np.full((8, 8), lower)
        segments[:4] = upper
        colors = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1).astype(np.uint8)
        (tmp_path / name).mkdir()
        Image.fromarray(colors).save(tmp_path / name / "1.png")
        categories = {upper: 1, lower: 2}
        info = [{"id": i, "category_id": c, "iscrowd": 0, "area": 32} for i, c in categories.items()]
        annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": info}]
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "annotations": annotations}))
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    truth = read_truth(tmp_path / "truth.json")
    runs = [read_predictions(tmp_path / f"{name}.json", truth) for name in "ab"]
    made = gallery.build_gallery(truth, runs, ["a", "b"], tmp_path, {"best": [1]}, [{1: 1.0}] * 2, "PQ")
    (item,) = made["items"]
    assert made["panels"] == ["ground truth", "a", "b"] and item["classes"] == [0, 1]
    first, second, third = (made["files"][key][1] for key in item["overlays"])
    assert first == second != third

"""The synthetic data set: the same bytes each time, files that agree with one another, nothing half-made."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest

cv2 = pytest.importorskip("cv2")
np = pytest.importorskip("numpy")
pycocotools_coco = pytest.importorskip("pycocotools.coco")
pycocotools_mask = pytest.importorskip("pycocotools.mask")

from defocus_commands.make_shapes import main
from defocus_commands.shapes import files, polygons, scene
from defocus_commands.shapes.data_set import MIN_SIZE, make_shapes

TOOL = Path(__file__).parents[2] / "tools" / "make_shapes.py"
SETTINGS = {"train": 12, "val": 5, "size": 96, "seed": 3}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", **SETTINGS)


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def assert_same_files(first, second):
    assert files_of(first) == files_of(second)
    _, different, unreadable = filecmp.cmpfiles(first, second, files_of(first), shallow=False)
    assert not different and not unreadable


def read_annotations(root, kind, split):
    return json.loads((root / "annotations" / f"{kind}_{split}.json").read_text())


def read_segment_ids(path):
    blue, green, red = np.moveaxis(cv2.imread(str(path)).astype(np.int64), 2, 0)
    return red + 256 * green + 256**2 * blue


def test_labels_are_in_the_order_of_the_configs(shapes):
    """mmseg knows its labels by their numbers alone."""
    config = pytest.importorskip("mmengine.config", reason="mmengine is not installed").Config
    names = ["circle", "square", "triangle", "star", "ring", "cross"]
    categories = read_annotations(shapes, "instances", "train")["categories"]
    assert [(category["id"], category["name"]) for category in categories] == list(enumerate(names, 1))
    detector = config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py")
    assert list(detector.classes) == names
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    segmentor = config.fromfile("mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py")
    assert list(segmentor.classes) == ["background", *names]


def test_same_arguments_give_the_same_bytes(shapes, tmp_path):
    assert_same_files(shapes, make_shapes(tmp_path / "again", **SETTINGS))


def test_program_with_two_workers_gives_the_same_bytes(shapes, tmp_path):
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    subprocess.run([sys.executable, TOOL, tmp_path / "out", *options, "--workers=2"], check=True)
    assert_same_files(shapes, tmp_path / "out")


def test_an_image_depends_on_seed_split_and_number_alone(shapes):
    drawn = {
        key: scene.draw_sample(*key).image for key in [("train", 1, 96, 3), ("train", 1, 96, 4), ("val", 1, 96, 3)]
    }
    assert len({image.tobytes() for image in drawn.values()}) == 3
    _, encoded = cv2.imencode(".jpg", drawn["train", 1, 96, 3], [cv2.IMWRITE_JPEG_QUALITY, files.JPEG_QUALITY])
    assert (shapes / "train" / "000001.jpg").read_bytes() == encoded.tobytes()


@pytest.mark.parametrize("split", scene.SPLITS)
def test_instances_agree_with_the_drawn_masks(shapes, split):
    coco = pycocotools_coco.COCO(shapes / "annotations" / f"instances_{split}.json")
    assert len(coco.imgs) == SETTINGS[split]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(scene.SHAPES)
    for image in coco.imgs.values():
        pixels = cv2.imread(str(shapes / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert max(pixels.shape) == SETTINGS["size"] and min(pixels.shape[:2]) >= 0.7 * SETTINGS["size"] - 1
        sample = scene.draw_sample(split, image["id"], SETTINGS["size"], SETTINGS["seed"])
        annotations = coco.imgToAnns[image["id"]]
        assert scene.MIN_OBJECTS <= len(annotations) <= scene.MAX_OBJECTS
        assert [annotation["category_id"] for annotation in annotations] == sample.category_ids
        for number, annotation in enumerate(annotations, 1):
            mask = sample.instance_map == number
            assert (coco.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum() >= scene.MIN_VISIBLE_PIXELS
            y, x = np.nonzero(mask)
            assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def grown(mask, pixels):
    """A mask with a rim of so many pixels, or without one if negative."""
    square = np.ones((2 * abs(pixels) + 1,) * 2, np.uint8)
    return (cv2.dilate if pixels > 0 else cv2.erode)(mask.astype(np.uint8), square).astype(bool)


@pytest.fixture(scope="module")
def lone_shapes(tmp_path_factory):
    """From the written files: pixels, mask and category of each shape that nothing covers or cuts off."""
    root = make_shapes(tmp_path_factory.mktemp("data") / "lone", train=45, val=0, size=256, seed=0)
    coco = pycocotools_coco.COCO(root / "annotations/instances_train.json")
    found = []
    for image in coco.imgs.values():
        pixels = cv2.imread(str(root / "train" / image["file_name"])).astype(np.float32)
        masks = [coco.annToMask(annotation).astype(bool) for annotation in coco.imgToAnns[image["id"]]]
        everything = np.sum(masks, 0)
        for annotation, mask in zip(coco.imgToAnns[image["id"]], masks):
            rim = grown(mask, 3) & ~mask
            at_border = any(edge.any() for edge in (mask[:3], mask[-3:], mask[:, :3], mask[:, -3:]))
            if mask.sum() >= 300 and not at_border and not everything[rim].any():
                found.append((pixels, mask, coco.cats[annotation["category_id"]]["name"]))
    return found


def name_of_outline(mask):
    """What a mask shows: told by a hole, by how full its hull is, and its smallest rectangle."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0][:, 3] >= 0).any():
        return "ring"
    (outline,) = contours
    # Contours run through pixel centres: half a pixel within the edge.
    solidity = mask.sum() / (cv2.contourArea(cv2.convexHull(outline)) + len(outline) / 2)
    if solidity < 0.8:
        # Of a star of five points 0.47 to 0.57 of the hull, of a cross 0.62 to 0.72.
        return "star" if solidity < 0.64 else "cross"
    width, height = cv2.minAreaRect(outline)[1]
    extent = mask.sum() / ((width + 1) * (height + 1))
    # A half, a quarter of pi, and all; pixels round the corners off.
    return "triangle" if extent < 0.65 else ("circle" if extent < 0.805 else "square")


def test_outlines_are_those_of_their_classes(lone_shapes):
    names = [name for _, _, name in lone_shapes]
    assert min(names.count(name) for name in scene.SHAPES) >= 3
    assert [name_of_outline(mask) for _, mask, _ in lone_shapes] == names


def test_masks_lie_where_the_paint_is(lone_shapes):
    """The colour changes most where a mask has its border, and less a few pixels beside it."""
    for pixels, mask, name in lone_shapes:
        changes = {}
        for shift in [(y, x) for y in (-3, 0, 3) for x in (-3, 0, 3)]:
            moved = np.roll(mask, shift, (0, 1))
            inner, outer = moved & ~grown(moved, -2), grown(moved, 2) & ~moved
            changes[shift] = np.abs(pixels[inner].mean(0) - pixels[outer].mean(0)).mean()
        assert max(changes, key=changes.get) == (0, 0), name


@pytest.mark.parametrize("density", [0.05, 0.5, 0.8, 1.0])
def test_outlines_rasterise_to_any_mask(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((13, 17)) < density
        mask[3, 4] = True
        box = list(cv2.boundingRect(mask.view(np.uint8)))
        found = pycocotools_mask.frPyObjects(polygons.outlines(mask, box), *mask.shape)
        assert (pycocotools_mask.decode(pycocotools_mask.merge(found)) == mask).all()


@pytest.mark.parametrize("split", scene.SPLITS)
def test_panoptic_and_semantic_maps_agree_with_the_annotations(shapes, split):
    panoptic = read_annotations(shapes, "panoptic", split)
    things = {category["id"]: category["isthing"] for category in panoptic["categories"]}
    assert list(things.values()) == [1] * len(scene.SHAPES) + [0]
    instances = read_annotations(shapes, "instances", split)
    assert panoptic["images"] == instances["images"]
    for image, annotation in zip(panoptic["images"], panoptic["annotations"]):
        assert annotation["image_id"] == image["id"]
        assert Path(annotation["file_name"]).stem == Path(image["file_name"]).stem
        segment_ids = read_segment_ids(shapes / "panoptic" / split / annotation["file_name"])
        semantic = cv2.imread(str(shapes / "semantic" / split / annotation["file_name"]), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == segment_ids.shape == (image["height"], image["width"])
        segments = annotation["segments_info"]
        assert sorted(segment["id"] for segment in segments) == np.unique(segment_ids).tolist()
        for segment in segments:
            mask = segment_ids == segment["id"]
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == list(cv2.boundingRect(mask.view(np.uint8)))
            label = segment["category_id"] if things[segment["category_id"]] else 0
            assert (semantic[mask] == label).all()
        found = [(s["category_id"], s["bbox"], s["area"]) for s in segments if things[s["category_id"]]]
        assert found == [
            (a["category_id"], a["bbox"], a["area"]) for a in instances["annotations"] if a["image_id"] == image["id"]
        ]


@pytest.mark.parametrize("size", [MIN_SIZE, 192])
def test_shapes_are_of_many_sizes_and_classes(size):
    samples = [scene.draw_sample("train", index, size, 0) for index in range(1, 41)]
    areas = np.concatenate([np.bincount(sample.instance_map.reshape(-1))[1:] for sample in samples])
    assert {category for sample in samples for category in sample.category_ids} == set(range(1, 7))
    assert all(scene.MIN_OBJECTS <= len(sample.category_ids) <= scene.MAX_OBJECTS for sample in samples)
    assert len({sample.image.shape for sample in samples}) > 5
    assert areas.max() < (size / 2 + 1) ** 2
    if size == 192:
        assert 0.3 < (areas < 32**2).mean() < 0.8


def test_an_equal_set_is_kept(shapes, capsys):
    before = {path: path.stat().st_mtime_ns for path in shapes.rglob("*")}
    for overwrite in (False, True):
        make_shapes(shapes, **SETTINGS, overwrite=overwrite)
        assert "already holds this data set" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shapes.rglob("*")} == before


def test_another_set_is_replaced_only_on_request(tmp_path):
    out = make_shapes(tmp_path / "out", train=2, val=1, size=32)
    with pytest.raises(FileExistsError, match=r"train 2 -> 3.*--overwrite"):
        make_shapes(out, train=3, val=1, size=32)
    assert len(list((out / "train").iterdir())) == 2
    make_shapes(out, train=3, val=1, size=32, overwrite=True)
    assert len(list((out / "train").iterdir())) == 3
    assert list(tmp_path.iterdir()) == [out]


def test_a_damaged_set_is_not_taken_for_whole(tmp_path):
    out = make_shapes(tmp_path / "out", train=2, val=1, size=32)
    (out / "train" / "000002.jpg").unlink()
    with pytest.raises(FileExistsError, match=r"000002\.jpg.*--overwrite"):
        make_shapes(out, train=2, val=1, size=32)
    make_shapes(out, train=2, val=1, size=32, overwrite=True)
    assert (out / "train" / "000002.jpg").exists()


def test_somebody_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear to me")
    with pytest.raises(FileExistsError, match="not made by this tool"):
        make_shapes(tmp_path, train=1, val=1, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(("name", "value"), [("train", -1), ("val", -1), ("size", 31), ("seed", -1), ("workers", 0)])
def test_arguments_out_of_range(tmp_path, monkeypatch, capsys, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        make_shapes(tmp_path / "out", **{name: value})
    monkeypatch.setattr(sys, "argv", ["make_shapes.py", str(tmp_path / "out"), f"--{name}={value}"])
    with pytest.raises(SystemExit):
        main()
    assert f"{name} must be at least" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_out_dir_must_not_be_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        make_shapes(tmp_path / "file")


@pytest.mark.parametrize("old_set", [False, True])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch, old_set):
    out = tmp_path / "out"
    if old_set:
        make_shapes(out, train=1, val=1, size=32)
    before = files_of(tmp_path)
    write = files._imwrite

    def write_until_interrupted(path, *arguments):
        if path.name.startswith("000002"):
            raise KeyboardInterrupt
        write(path, *arguments)

    monkeypatch.setattr(files, "_imwrite", write_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(out, train=3, val=1, size=32, overwrite=True)
    assert files_of(tmp_path) == before
    assert list(tmp_path.iterdir()) == [out] * old_set

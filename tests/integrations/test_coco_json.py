"""The runner that reads from a folder of COCO data what a config would have to say."""

import json

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")
from mmengine.config import Config
from PIL import Image

from backbones.integrations.coco_json import CocoJsonRunner, _choose_start, fill_in_coco_json

CONFIG = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-1500it_any-coco-json.py"
CATEGORIES = [{"id": 7, "name": "zebra"}, {"id": 3, "name": "ant"}]


def write(annotations, images, categories=CATEGORIES, names=("a.png", "b.png"), side=64):
    """A COCO file and its images, each with one zebra and one ant."""
    annotations.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    content = dict(images=[], annotations=[], categories=categories)
    for i, name in enumerate(names):
        Image.new("RGB", (side, side)).save(images / name)
        content["images"].append(dict(id=i, file_name=name, width=side, height=side))
        for j, category in enumerate((7, 3)):
            box = [5 + 20 * j, 5, 10, 12]
            content["annotations"].append(
                dict(id=2 * i + j, image_id=i, category_id=category, bbox=box, area=120, iscrowd=0)
            )
    annotations.write_text(json.dumps(content))


def config(root, **changes):
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(dict(data_root=str(root), **changes))
    return config


@pytest.mark.parametrize(
    "annotations, images, validation",
    [
        ("annotations/{}.json", "{}", "val"),
        ("annotations/instances_{}2017.json", "{}2017", "val"),
        ("annotations/instances_{}.json", "images/{}", "val"),
        ("{}/_annotations.coco.json", "{}", "valid"),
        ("{}.json", "", "test"),
    ],
)
def test_usual_layouts(tmp_path, annotations, images, validation):
    for split in ("train", validation):
        write(tmp_path / annotations.format(split), tmp_path / images.format(split), names=(f"{split}.png",))
    filled = config(tmp_path)
    fill_in_coco_json(filled)
    from mmdet.registry import DATASETS, MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    for loader, split in (
        ("train_dataloader", "train"),
        ("val_dataloader", validation),
        ("test_dataloader", validation),
    ):
        dataset = DATASETS.build(filled[loader].dataset)
        # Labels are numbered in the order of the file, whatever the ids.
        assert dataset.metainfo["classes"] == ("zebra", "ant")
        (sample,) = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert sample["img_path"] == str(tmp_path / images.format(split) / f"{split}.png")
        assert [(i["bbox"], i["bbox_label"]) for i in sample["instances"]] == [
            ([5, 5, 15, 17], 0),
            ([25, 5, 35, 17], 1),
        ]
    assert filled.test_evaluator.ann_file == str(tmp_path / annotations.format(validation))
    model = MODELS.build(filled.model)
    assert model.bbox_head.cls_branches[0].out_features == model.dn_query_generator.label_embedding.num_embeddings == 2


def test_other_names_are_given(tmp_path):
    write(tmp_path / "a/learn.json", tmp_path / "pictures/one")
    write(tmp_path / "b/judge.json", tmp_path / "pictures/two")
    names = dict(train_json="a/learn.json", val_json="b/judge.json")
    names |= dict(train_images="pictures/one", val_images="pictures/two")
    filled = config(tmp_path, data_files=names)
    fill_in_coco_json(filled)
    assert filled.train_dataloader.dataset.data_prefix.img == str(tmp_path / "pictures/one")
    assert filled.val_dataloader.dataset.ann_file == str(tmp_path / "b/judge.json")


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda root: root.rename(root.parent / "away"), FileNotFoundError, "is no folder .* data_root=FOLDER"),
        (
            lambda root: (root / "annotations/val.json").unlink(),
            FileNotFoundError,
            r"for val: looked for annotations/val",
        ),
        (
            lambda root: (root / "train/a.png").unlink(),
            FileNotFoundError,
            r"lists the image a.png, which is in none of",
        ),
        (lambda root: (root / "annotations/val.json").write_text("{"), ValueError, r"val.json is no JSON"),
        (
            lambda root: (root / "annotations/val.json").write_text("{}"),
            ValueError,
            "lacks annotations, categories, images",
        ),
        (
            lambda root: write(root / "annotations/val.json", root / "val", CATEGORIES[::-1]),
            ValueError,
            r"another order: \[\(7, 'zebra'\), \(3, 'ant'\)\] and \[\(3, 'ant'\), \(7, 'zebra'\)\]",
        ),
        (
            lambda root: write(
                root / "annotations/train.json", root / "train", [*CATEGORIES, {"id": 9, "name": "ant"}]
            ),
            ValueError,
            r"more than one category called \['ant'\]",
        ),
        (lambda root: write(root / "annotations/train.json", root / "train", []), ValueError, "has no categories"),
        (lambda root: write(root / "annotations/train.json", root / "train", names=()), ValueError, "lists no images"),
    ],
    ids=["root", "annotations", "image", "json", "format", "order", "twice", "none", "empty"],
)
def test_data_that_cannot_be_used(tmp_path, damage, error, message):
    root = tmp_path / "mine"
    for split in ("train", "val"):
        write(root / f"annotations/{split}.json", root / split)
    damage(root)
    with pytest.raises(error, match=message):
        CocoJsonRunner.from_cfg(config(root))


def test_where_a_run_starts(tmp_path):
    start = tmp_path / "demo.pth"
    chosen = config(tmp_path, start_from=str(start), work_dir=str(tmp_path / "work"))
    _choose_start(chosen)
    assert chosen.load_from is None
    start.write_text("")
    _choose_start(chosen)
    assert chosen.load_from == str(start)
    mine = config(tmp_path, start_from=str(start), load_from="mine.pth", work_dir=str(tmp_path / "work"))
    _choose_start(mine)
    assert mine.load_from == "mine.pth"
    # tools/train.py --resume: from the run's own checkpoint, and from the start where there is none yet.
    resumed = config(tmp_path, start_from=str(start), resume=True, work_dir=str(tmp_path / "work"))
    _choose_start(resumed)
    assert (resumed.load_from, resumed.resume) == (str(start), False)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/last_checkpoint").write_text(str(tmp_path / "work/iter_10.pth"))
    (tmp_path / "work/iter_10.pth").write_text("")
    resumed = config(tmp_path, start_from=str(start), resume=True, work_dir=str(tmp_path / "work"))
    _choose_start(resumed)
    assert (resumed.load_from, resumed.resume) == (None, True)

"""Wrong annotations, refused before training."""

import json
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")

import cv2
import mmseg
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmseg.datasets import BaseSegDataset

import backbones  # noqa: F401  registers the hook


class Runner:
    def __init__(self, model, dataset):
        self.model = model
        self.train_dataloader = torch.utils.data.DataLoader(dataset)


def run_hook(model, dataset, **settings):
    HOOKS.build(dict(type="CheckAnnotationsHook", **settings)).before_train(Runner(model, dataset))


def segmentor():
    """FCN of 3 classes, whose auxiliary head comes second."""
    model = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs/_base_/models/fcn_r50-d8.py").model
    model.backbone.depth, model.pretrained = 18, None
    model.decode_head.update(in_channels=512, channels=8, num_classes=3)
    model.auxiliary_head.update(in_channels=256, channels=8, num_classes=3)
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        part.norm_cfg = dict(type="BN")
    return build(model)


def build(model):
    """A model without weights: what it knows is all that is asked of it."""
    with torch.device("meta"):
        return MODELS.build(model)


def detector(config, **head_settings):
    """A stock detector of mmdet; ``head_settings`` go to the named heads."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    init_default_scope("mmdet")
    model = get_config(f"mmdet::{config}").model
    model.backbone.init_cfg = None
    for head, settings in head_settings.items():
        (model if head in model else model.roi_head)[head].update(settings)
    return build(model)


@pytest.fixture(scope="module")
def mask_rcnn():
    """Mask R-CNN whose box head knows 3 classes, its mask head 4, its RPN proposals alone."""
    return detector(MASK_RCNN, bbox_head=dict(num_classes=3), mask_head=dict(num_classes=4))


MASK_RCNN = "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"


def write_set(folder, label_map, count=3, size=(20, 30)):
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"images/{number}.jpg"), np.zeros((*size, 3), np.uint8))
        good = np.array([[0, 2], [1, 255]], np.uint8).repeat(size[0] // 2, 0).repeat(size[1] // 2, 1)
        cv2.imwrite(str(folder / f"labels/{number}.png"), label_map if number == count - 1 else good)


def check(folder, samples=32, **settings):
    init_default_scope("mmseg")
    dataset = BaseSegDataset(
        data_root=str(folder),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
        **settings,
    )
    run_hook(segmentor(), dataset, samples=samples)


def test_right_label_maps_pass(tmp_path):
    write_set(tmp_path, np.ones((20, 30), np.uint8))
    check(tmp_path)


def test_labels_out_of_range(tmp_path):
    write_set(tmp_path, np.full((20, 30), 3, np.uint8))
    with pytest.raises(ValueError, match=r"labels/2\.png holds labels \[3\], the head knows 0 to 2 .* num_classes"):
        check(tmp_path)
    # The labels count as the pipeline gives them: with 0 as background to ignore, 3 is class 2.
    check(tmp_path, reduce_zero_label=True)


def test_label_map_of_another_size(tmp_path):
    write_set(tmp_path, np.zeros((30, 20), np.uint8))
    with pytest.raises(ValueError, match=r"labels/2\.png is 20×30 pixels, its image .* is 30×20"):
        check(tmp_path)


def test_label_map_of_colours(tmp_path):
    write_set(tmp_path, np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ValueError, match=r"labels/2\.png has 3 channels"):
        check(tmp_path)


def coco_set(folder, segmentation, category=2, size=(20, 30), images=1, wrong=None, iscrowd=0):
    """A COCO-format set of images of 20×30 pixels with one instance each; they share one file.

    Args:
        wrong: The one image that has the instance as given, in a set of right ones; None for all of them.
    """
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "0.png"), np.zeros((20, 30, 3), np.uint8))
    annotations = []
    for number in range(images):
        given = wrong in (None, number)
        instance = dict(id=number + 1, image_id=number + 1, bbox=[2, 2, 10, 10], area=100)
        instance |= dict(iscrowd=iscrowd if given else 0, category_id=category if given else 2)
        mask = segmentation if given else POLYGON
        annotations.append(instance | (dict(segmentation=mask) if mask else {}))
    coco = dict(
        images=[dict(id=n + 1, file_name="0.png", height=size[0], width=size[1]) for n in range(images)],
        annotations=annotations,
        categories=[dict(id=number, name=name) for number, name in enumerate("abcd")],
    )
    (folder / "set.json").write_text(json.dumps(coco))


def coco_config(folder, with_mask=True, filter_empty_gt=True):
    return dict(
        type="CocoDataset",
        data_root=f"{folder}/",
        ann_file="set.json",
        data_prefix=dict(img=""),
        metainfo=dict(classes=tuple("abcd")),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask)],
        filter_cfg=dict(filter_empty_gt=filter_empty_gt),
    )


def check_coco(model, config, **settings):
    from mmdet.registry import DATASETS

    init_default_scope("mmdet")
    run_hook(model, DATASETS.build(config), **settings)


POLYGON = [[2, 2, 12, 2, 12, 12]]


def run_length(height, width):
    return dict(size=[height, width], counts=[0, height * width])


@pytest.mark.parametrize("mask", [POLYGON, run_length(20, 30)])
def test_right_instances_pass(tmp_path, mask, mask_rcnn):
    coco_set(tmp_path, mask)
    check_coco(mask_rcnn, coco_config(tmp_path))


def test_mask_of_another_size(tmp_path, mask_rcnn):
    coco_set(tmp_path, run_length(40, 60))
    with pytest.raises(ValueError, match=r"0\.png is 30×20 pixels, one of its masks 60×40"):
        check_coco(mask_rcnn, coco_config(tmp_path))


def test_annotations_of_an_image_of_another_size(tmp_path, mask_rcnn):
    coco_set(tmp_path, POLYGON, size=(30, 20))
    with pytest.raises(ValueError, match=r"0\.png is 30×20 pixels, its annotations were made for 20×30"):
        check_coco(mask_rcnn, coco_config(tmp_path))


def test_instance_without_mask(tmp_path, mask_rcnn):
    coco_set(tmp_path, None)
    check_coco(mask_rcnn, coco_config(tmp_path, with_mask=False))
    with pytest.raises(ValueError, match=r"0\.png has an instance with a box and no mask"):
        check_coco(mask_rcnn, coco_config(tmp_path))


@pytest.mark.parametrize("mask", [None, [], POLYGON])
def test_ignored_instances_pass_where_mmdet_can_load_them(tmp_path, mask, mask_rcnn):
    """mmdet's own loader is the truth: it needs the key of an ignored instance, and takes an empty mask there."""
    from mmdet.registry import DATASETS

    class Dataset(DATASETS.get("mmdet.CocoDataset")):
        def parse_data_info(self, raw):
            info = super().parse_data_info(raw)
            if mask is not None:
                info["instances"][0]["mask"] = mask
            return info

    coco_set(tmp_path, mask, category=3, iscrowd=1)
    init_default_scope("mmdet")
    config = coco_config(tmp_path, filter_empty_gt=False)
    config.pop("type")
    dataset = Dataset(**config)
    try:
        dataset[0]
    except KeyError:
        with pytest.raises(ValueError, match="an instance with a box and no mask"):
            run_hook(mask_rcnn, dataset)
    else:
        run_hook(mask_rcnn, dataset)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(segmentation=POLYGON, category=3), "class 3, the heads know 0 to 2: set num_classes"),
        (dict(segmentation=run_length(40, 60)), "one of its masks 60×40"),
        (dict(segmentation=None), "a box and no mask"),
    ],
)
def test_what_records_say_is_checked_for_each_of_them(tmp_path, wrong, message, mask_rcnn):
    """One image in 1,000 is wrong, and none that the sample holds."""
    coco_set(tmp_path, **wrong, images=1000, wrong=777)
    with pytest.raises(ValueError, match=message):
        check_coco(mask_rcnn, coco_config(tmp_path), samples=4)


def test_files_are_read_of_a_sample_that_reaches_over_the_set(tmp_path, mask_rcnn):
    coco_set(tmp_path, POLYGON, images=8)
    coco = json.loads((tmp_path / "set.json").read_text())
    coco["images"][6]["height"], coco["images"][6]["width"] = 30, 20
    (tmp_path / "set.json").write_text(json.dumps(coco))
    check_coco(mask_rcnn, coco_config(tmp_path), samples=2)  # 0 and 4
    with pytest.raises(ValueError, match=r"0\.png is 30×20 pixels, its annotations were made for 20×30"):
        check_coco(mask_rcnn, coco_config(tmp_path), samples=4)  # 0, 2, 4 and 6


@pytest.mark.parametrize("wrong_part", [0, 1, 2])
def test_each_part_of_nested_wrappers_is_checked(tmp_path, wrong_part, mask_rcnn):
    parts = []
    for number in range(3):
        coco_set(tmp_path / str(number), POLYGON, category=3 if number == wrong_part else 2)
        parts.append(coco_config(tmp_path / str(number)))
    first = dict(type="ClassBalancedDataset", dataset=parts[0], oversample_thr=1e-3)
    second = dict(type="MultiImageMixDataset", dataset=parts[1], pipeline=[])
    third = dict(type="RepeatDataset", dataset=dict(type="RepeatDataset", dataset=parts[2], times=2), times=2)
    joined = dict(type="ConcatDataset", datasets=[first, second, third])
    with pytest.raises(ValueError, match=rf"{wrong_part}/0\.png has an instance of class 3"):
        check_coco(mask_rcnn, dict(type="RepeatDataset", dataset=joined, times=2))


def test_a_data_set_that_is_not_mmengines_is_left_alone():
    run_hook(torch.nn.Identity(), torch.utils.data.TensorDataset(torch.zeros(2)))


def test_a_detector_without_class_heads_is_checked_for_the_rest(tmp_path):
    """mmdet's RPN calls its head bbox_head, of one class, whatever the classes of the set."""
    rpn = detector("rpn/rpn_r50_fpn_1x_coco.py")
    coco_set(tmp_path, run_length(20, 30), category=3)
    check_coco(rpn, coco_config(tmp_path))
    coco_set(tmp_path, run_length(40, 60))
    with pytest.raises(ValueError, match="one of its masks 60×40"):
        check_coco(rpn, coco_config(tmp_path))


def test_proposals_of_any_head_do_not_limit_instances(tmp_path):
    """A dense head as rpn_head knows one class, things, and is of no class called RPN."""
    model = detector(MASK_RCNN, rpn_head=dict(type="RetinaHead", num_classes=1, stacked_convs=1))
    coco_set(tmp_path, POLYGON, category=3)
    check_coco(model, coco_config(tmp_path))


def test_stuff_and_class_agnostic_heads_do_not_limit_instances(tmp_path):
    stuff = detector(
        "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py", semantic_head=dict(num_things_classes=80, num_stuff_classes=1)
    )
    agnostic = detector(MASK_RCNN, mask_head=dict(num_classes=1, class_agnostic=True))
    coco_set(tmp_path, POLYGON, category=3)
    for model in (stuff, agnostic):
        check_coco(model, coco_config(tmp_path))


def check_panoptic(folder, monkeypatch, category=0, size=(20, 30), stuff=1):
    """A panoptic set of one image of 20×30 pixels with one thing, for a Mask2Former of one thing and ``stuff``."""
    datasets = pytest.importorskip("mmdet.datasets", reason="mmdet is not installed")
    # mmdet's loader asks for a package that its wheel does not need; nothing here decodes a map.
    utils = types.SimpleNamespace(rgb2id=None)
    monkeypatch.setitem(sys.modules, "panopticapi", types.SimpleNamespace(utils=utils))
    cv2.imwrite(str(folder / "0.jpg"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(folder / "0.png"), np.zeros((*size, 3), np.uint8))
    segment = dict(id=1, category_id=category, bbox=[0, 0, 9, 9], area=81, iscrowd=0)
    names = "abc"
    panoptic = dict(
        images=[dict(id=1, file_name="0.jpg", height=20, width=30)],
        annotations=[dict(image_id=1, file_name="0.png", segments_info=[segment])],
        categories=[dict(id=number, name=name, isthing=int(name == "a")) for number, name in enumerate(names)],
    )
    (folder / "set.json").write_text(json.dumps(panoptic))
    init_default_scope("mmdet")
    dataset = datasets.CocoPanopticDataset(
        data_root=f"{folder}/",
        ann_file="set.json",
        data_prefix=dict(img="", seg=""),
        metainfo=dict(classes=tuple(names), thing_classes=("a",), stuff_classes=("b", "c")),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadPanopticAnnotations")],
    )
    counts = dict(num_things_classes=1, num_stuff_classes=stuff)
    model = detector(
        "mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
        panoptic_head=counts | dict(loss_cls=dict(class_weight=[1.0] * (1 + stuff) + [0.1])),
        panoptic_fusion_head=counts,
    )
    run_hook(model, dataset)


@pytest.mark.parametrize("category", [0, 1])
def test_right_panoptic_segments_pass(tmp_path, monkeypatch, category):
    """Things have boxes there, and their masks in the map alone."""
    check_panoptic(tmp_path, monkeypatch, category)


def test_panoptic_segment_of_an_unknown_class(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"0\.png has a segment of class 2, the heads know 0 to 1"):
        check_panoptic(tmp_path, monkeypatch, category=2)


def test_panoptic_map_of_another_size(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"0\.png is 60×40 pixels, its image .*0\.jpg is 30×20"):
        check_panoptic(tmp_path, monkeypatch, size=(40, 60))

"""Wrong annotations, refused before training."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")

import torch
from mmengine.registry import HOOKS, init_default_scope
from mmseg.datasets import BaseSegDataset

import backbones  # noqa: F401  registers the hook


class Head(torch.nn.Module):
    num_classes, ignore_index = 3, 255


class Runner:
    def __init__(self, dataset):
        self.model = torch.nn.Sequential(Head())
        self.train_dataloader = torch.utils.data.DataLoader(dataset)


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
    HOOKS.build(dict(type="CheckAnnotationsHook", samples=samples)).before_train(Runner(dataset))


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


def coco_set(folder, segmentation, category=2, size=(20, 30)):
    """A COCO-format set of one image of 20×30 pixels with one instance."""
    cv2.imwrite(str(folder / "0.png"), np.zeros((20, 30, 3), np.uint8))
    instance = dict(id=1, image_id=1, category_id=category, bbox=[2, 2, 10, 10], area=100, iscrowd=0)
    coco = dict(
        images=[dict(id=1, file_name="0.png", height=size[0], width=size[1])],
        annotations=[instance | (dict(segmentation=segmentation) if segmentation else {})],
        categories=[dict(id=number, name=name) for number, name in enumerate("abcd")],
    )
    (folder / "set.json").write_text(json.dumps(coco))


def check_coco(folder, with_mask=True):
    datasets = pytest.importorskip("mmdet.datasets", reason="mmdet is not installed")
    init_default_scope("mmdet")
    dataset = datasets.CocoDataset(
        data_root=f"{folder}/",
        ann_file="set.json",
        data_prefix=dict(img=""),
        metainfo=dict(classes=tuple("abcd")),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask)],
        filter_cfg=dict(filter_empty_gt=True),
    )
    wrapped = datasets.MultiImageMixDataset(dataset, pipeline=[])
    HOOKS.build(dict(type="CheckAnnotationsHook")).before_train(Runner(wrapped))


POLYGON = [[2, 2, 12, 2, 12, 12]]


def run_length(height, width):
    return dict(size=[height, width], counts=[0, height * width])


@pytest.mark.parametrize("mask", [POLYGON, run_length(20, 30)])
def test_right_instances_pass(tmp_path, mask):
    coco_set(tmp_path, mask)
    check_coco(tmp_path)


def test_mask_of_another_size(tmp_path):
    coco_set(tmp_path, run_length(40, 60))
    with pytest.raises(ValueError, match=r"0\.png is 30×20 pixels, one of its masks 60×40"):
        check_coco(tmp_path)


def test_annotations_of_an_image_of_another_size(tmp_path):
    coco_set(tmp_path, POLYGON, size=(30, 20))
    with pytest.raises(ValueError, match=r"0\.png is 30×20 pixels, its annotations were made for 20×30"):
        check_coco(tmp_path)


def test_instance_without_mask(tmp_path):
    coco_set(tmp_path, None)
    check_coco(tmp_path, with_mask=False)
    with pytest.raises(ValueError, match=r"0\.png has an instance with a box and no mask"):
        check_coco(tmp_path)


def test_class_that_the_heads_do_not_know(tmp_path):
    coco_set(tmp_path, POLYGON, category=3)
    with pytest.raises(ValueError, match="class 3, the heads know 0 to 2: set num_classes"):
        check_coco(tmp_path)


def test_panoptic_map_of_another_size(tmp_path):
    datasets = pytest.importorskip("mmdet.datasets", reason="mmdet is not installed")
    cv2.imwrite(str(tmp_path / "0.jpg"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((40, 60, 3), np.uint8))
    segment = dict(id=1, category_id=0, bbox=[0, 0, 9, 9], area=81, iscrowd=0)
    panoptic = dict(
        images=[dict(id=1, file_name="0.jpg", height=20, width=30)],
        annotations=[dict(image_id=1, file_name="0.png", segments_info=[segment])],
        categories=[dict(id=0, name="a", isthing=1)],
    )
    (tmp_path / "set.json").write_text(json.dumps(panoptic))
    init_default_scope("mmdet")
    dataset = datasets.CocoPanopticDataset(
        data_root=f"{tmp_path}/",
        ann_file="set.json",
        data_prefix=dict(img="", seg=""),
        metainfo=dict(classes=("a",), thing_classes=("a",), stuff_classes=()),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
    )
    with pytest.raises(ValueError, match=r"0\.png is 60×40 pixels, its image .*0\.jpg is 30×20"):
        HOOKS.build(dict(type="CheckAnnotationsHook")).before_train(Runner(dataset))

"""Wrong label maps, refused before training."""

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
    with pytest.raises(ValueError, match="in one channel"):
        check(tmp_path)

"""Boundaries of masks: thin, also at the image's border, and what is near neither stays out."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from defocus_eval.scores.boundary import boundary_iou, boundary_of
from tests.defocus_eval.drawn import diamond, to_rle


def pixels(code):
    return coco_mask.decode(code).astype(bool)


def test_a_square_becomes_a_frame():
    # The diagonal is 50 pixels, so the boundary is one wide.
    mask = np.zeros((30, 40), bool)
    mask[10:20, 12:25] = True
    frame = mask.copy()
    frame[11:19, 13:24] = False
    assert (pixels(boundary_of(to_rle(mask))) == frame).all()


def test_the_border_of_the_image_is_a_boundary():
    frame = np.ones((30, 40), bool)
    frame[1:-1, 1:-1] = False
    assert (pixels(boundary_of(to_rle(np.ones((30, 40), bool)))) == frame).all()


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_squares_around_pixels_say(seed):
    rng = np.random.default_rng(seed)
    height, width = 90, 130  # a diagonal of 158: three wide
    mask = diamond(height, width, *rng.uniform(0, 90, 2), rng.uniform(5, 60)) ^ (rng.random((height, width)) < 0.003)
    expected = np.zeros_like(mask)
    padded = np.pad(mask, 3)
    for row, column in zip(*np.nonzero(mask)):
        expected[row, column] = not padded[row : row + 7, column : column + 7].all()
    assert (pixels(boundary_of(to_rle(mask))) == expected).all() and expected.any()


def test_empty_masks_have_none():
    assert not pixels(boundary_of(to_rle(np.zeros((20, 20), bool)))).any()


def test_the_smaller_iou_counts_but_for_crowds():
    masks = [to_rle(diamond(60, 60, 30 + shift, 30, 25)) for shift in (0, 2)]
    edges = [boundary_of(mask) for mask in masks]
    mask_iou, edge_iou = coco_mask.iou(masks[:1], masks[1:], [0]), coco_mask.iou(edges[:1], edges[1:], [0])
    assert edge_iou < 0.7 < mask_iou

    def iou(crowd, least):
        return boundary_iou(masks[:1], masks[1:], np.array([crowd]), least)

    assert iou(False, 0.5) == edge_iou
    assert iou(True, 0.5) == coco_mask.iou(masks[:1], masks[1:], [1])
    # Masks that are too far apart anyway need no boundaries.
    assert iou(False, 0.99) == mask_iou


def test_each_pair_has_its_own():
    found = [to_rle(diamond(60, 60, x, 30, 25)) for x in (10, 28, 31, 50)]
    objects = [to_rle(diamond(60, 60, x, 30, 25)) for x in (30, 45, 5)]
    iou = boundary_iou(found, objects, np.array([False, True, False]), 0.5)
    for row, first in enumerate(found):
        for column, second in enumerate(objects):
            alone = boundary_iou([first], [second], np.array([column == 1]), 0.5)
            assert iou[row, column] == alone

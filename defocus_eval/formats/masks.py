"""Masks as COCO writes them: polygons, and run-length codes, compressed or not."""

from __future__ import annotations

from pycocotools import mask as coco_mask


def run_length_code(segmentation: list | dict, height: int, width: int) -> dict:
    """The compressed run-length code of a mask; itself where it is one.

    Args:
        segmentation: Polygons, each a flat list of x and y in pixels, or a run-length code.
        height: Of the image, in pixels, for polygons; a code says its own size.
        width: The same.

    Returns:
        `size`, height and width, and `counts`.
    """
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation

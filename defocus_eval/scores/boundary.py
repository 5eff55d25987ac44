"""Boundary IoU of masks (Cheng et al., arXiv 2103.16562): the IoU of what lies near the outlines."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

# Width of the boundary, as a share of the image's diagonal.
DILATION = 0.02


def boundary_of(mask: dict) -> dict:
    """The part of a mask that lies no further than its boundary's width from what is outside, the image's border too.

    Args:
        mask: Run-length code.

    Returns:
        Run-length code.
    """
    height, width = mask["size"]
    distance = max(1, round(DILATION * float(np.hypot(height, width))))
    left, top, across, down = (int(value) for value in coco_mask.toBbox(mask))
    pixels = coco_mask.decode(mask)
    part = pixels[top : top + down, left : left + across]
    # Inside is where the square of side 2·distance + 1 around a pixel is full: sums over squares by running sums.
    sums = np.zeros((down + 2 * distance + 1, across + 2 * distance + 1), np.int32)
    np.cumsum(np.cumsum(np.pad(part, distance), 0, dtype=np.int32), 1, out=sums[1:, 1:])
    side = 2 * distance + 1
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    part[full] = 0
    return coco_mask.encode(pixels)


def boundary_iou(
    found: list[dict], objects: list[dict], found_edges: list[dict], object_edges: list[dict], crowd: list[bool]
) -> np.ndarray:
    """The smaller of mask IoU and boundary IoU, `(found, objects)`; for crowds the former.

    Args:
        found: Masks of detections.
        objects: Masks of objects.
        found_edges: Their boundaries.
        object_edges: Theirs.
        crowd: Which objects are crowds.
    """
    iou = coco_mask.iou(found, objects, crowd)
    edges = coco_mask.iou(found_edges, object_edges, crowd)
    return np.where(crowd, iou, np.minimum(iou, edges))

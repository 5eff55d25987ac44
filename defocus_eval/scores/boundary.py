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


def boundary_iou(found: list[dict], objects: list[dict], crowd: np.ndarray, least: float) -> np.ndarray:
    """The smaller of mask IoU and boundary IoU, `(found, objects)`; for crowds the former.

    Args:
        found: Masks of detections.
        objects: Masks of objects.
        crowd: Which objects are crowds, `(objects,)` bool.
        least: Mask IoU below which boundaries are not drawn: there the mask IoU stands, which is too small already.
    """
    iou = coco_mask.iou(found, objects, crowd)
    near = (iou >= least) & ~crowd
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if len(rows):
        edges = [
            [boundary_of(masks[index]) for index in chosen] for masks, chosen in ((found, rows), (objects, columns))
        ]
        part = np.ix_(rows, columns)
        nearer = np.minimum(iou[part], coco_mask.iou(*edges, np.zeros(len(columns), bool)))
        iou[part] = np.where(near[part], nearer, iou[part])
    return iou

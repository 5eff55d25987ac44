"""Masks as COCO's polygons, without loss."""

import cv2
import numpy as np


def outlines(mask: np.ndarray, box: list[int]) -> list[list[int]]:
    """Polygons along the pixel edges of a mask, which rasterise to exactly that mask.

    A polygon in COCO form cannot say "hole", so each hole is joined to its outline by a cut of no width.

    Args:
        mask: `(h, w)` bool.
        box: x, y, width and height of the mask.

    Returns:
        One flat `[x0, y0, x1, y1, …]` for each connected part.
    """
    x, y, width, height = box
    # Contours run through pixel centres. In a picture three times as large those of the border pixels tell by
    # their rest modulo three on which side the edge is: 3i → i, 3i + 2 → i + 1.
    enlarged = mask[y : y + height, x : x + width].astype(np.uint8).repeat(3, 0).repeat(3, 1)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners = []
    for contour in contours:
        points = (contour.reshape(-1, 2) + 1) // 3
        corners.append(points[(points != np.roll(points, 1, 0)).any(1)] + (x, y))

    polygons = []
    for outline, (_, _, child, parent) in zip(corners, hierarchy.reshape(-1, 4)):
        if parent >= 0:
            continue
        hole = child
        while hole >= 0:
            outline = _join(outline, corners[hole])
            hole = hierarchy.reshape(-1, 4)[hole][0]
        polygons.append(outline.reshape(-1).tolist())
    return polygons


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One closed line through both `(n, 2)` lines, which runs twice along the shortest way between them."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])

"""One image: which shapes, where, how large and how turned, and which of them is above."""

from typing import NamedTuple

import cv2
import numpy as np

from defocus_commands.shapes.paint import draw_background, draw_fill

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SPLITS = ("train", "val")

MIN_OBJECTS, MAX_OBJECTS = 2, 7
MIN_DIAMETER = 10
# Radians either way: things in photographs stand upright, more or less.
MOST_ROTATION = np.pi / 7
# A shape must keep this share of its area, and this many pixels, under image borders and other shapes.
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.65, 24
SUPERSAMPLING = 4


class Sample(NamedTuple):
    """One drawn image.

    Attributes:
        image: Pixels, `(h, w, 3)` uint8, BGR.
        instance_map: `(h, w)` uint8; 0 is background, i the i-th instance.
        category_ids: Category of each instance, 1 to 6.
    """

    image: np.ndarray
    instance_map: np.ndarray
    category_ids: list[int]


def draw_sample(split: str, index: int, size: int, seed: int) -> Sample:
    """Draws one image.

    Args:
        split: "train" or "val".
        index: Number of the image within its split.
        size: Long side in pixels.
        seed: Seed of the data set.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    short = round(size * rng.uniform(0.7, 1.0))
    height, width = (short, size) if rng.random() < 0.5 else (size, short)

    canvas = draw_background(rng, height, width)
    instance_map = np.zeros((height, width), np.uint8)
    category_ids: list[int] = []
    full_areas: list[int] = []
    wanted = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    attempts = 0
    while len(category_ids) < wanted and (attempts < 10 * wanted or len(category_ids) < MIN_OBJECTS):
        attempts += 1
        category_id = int(rng.integers(1, len(SHAPES) + 1))
        coverage, top, left = _draw_coverage(rng, SHAPES[category_id - 1], height, width)
        full_area = np.count_nonzero(coverage >= 128)
        rows = slice(max(0, -top), min(coverage.shape[0], height - top))
        columns = slice(max(0, -left), min(coverage.shape[1], width - left))
        here = (slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left))
        coverage = coverage[rows, columns]

        drawn_map = instance_map.copy()
        drawn_map[here][coverage >= 128] = len(category_ids) + 1
        visible = np.bincount(drawn_map.reshape(-1), minlength=len(category_ids) + 2)[1:]
        needed = np.maximum(MIN_VISIBLE_SHARE * np.array([*full_areas, full_area]), MIN_VISIBLE_PIXELS)
        if (visible < needed).any():
            continue
        instance_map = drawn_map
        category_ids.append(category_id)
        full_areas.append(full_area)
        fill = draw_fill(rng, canvas[here], coverage)
        canvas[here] += (fill - canvas[here]) * (coverage[..., None] / np.float32(255))

    canvas += rng.normal(0, rng.uniform(1, 6), (height, width, 1)).astype(np.float32)
    return Sample(np.clip(canvas, 0, 255).astype(np.uint8), instance_map, category_ids)


def _shape_outline(shape: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Lines of a shape, each `(n, 2)`, within the unit circle; the inside is where their parity is odd."""
    if shape == "circle":
        return [_regular_polygon(64)]
    if shape == "ring":
        return [_regular_polygon(64), _regular_polygon(64) * rng.uniform(0.5, 0.62)]
    if shape == "square":
        return [_regular_polygon(4)]
    if shape == "triangle":
        return [_regular_polygon(3)]
    if shape == "star":
        star = _regular_polygon(10)
        star[1::2] *= rng.uniform(0.38, 0.46)
        return [star]
    arm = rng.uniform(0.26, 0.34)
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    cross = np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    return [cross / np.hypot(1, arm)]


def _regular_polygon(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _draw_coverage(rng: np.random.Generator, shape: str, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Draws a shape of random size, place and rotation.

    Returns:
        How far each pixel of a window is covered, 0 to 255, and the window's top and left in the image.
    """
    long_side = max(height, width)
    least, most = max(MIN_DIAMETER, long_side / 14), long_side * 0.6
    diameter = least * (most / least) ** (rng.random() ** 0.5)
    angle = rng.uniform(-MOST_ROTATION, MOST_ROTATION)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.array([1, rng.uniform(0.85, 1)])
    centre = rng.uniform((0, 0), (width, height))

    lines = [line * stretch @ rotation * (diameter / 2) + centre for line in _shape_outline(shape, rng)]
    left, top = np.floor(lines[0].min(0)).astype(int)
    right, bottom = np.ceil(lines[0].max(0)).astype(int)
    canvas = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    fixed_point_bits = 8
    # OpenCV puts whole numbers on pixel centres, we on pixel edges: hence the half.
    lines = [((line - (left, top)) * SUPERSAMPLING - 0.5) * 2**fixed_point_bits for line in lines]
    cv2.fillPoly(canvas, [line.round().astype(np.int32) for line in lines], 255, shift=fixed_point_bits)
    return cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA), int(top), int(left)

"""Images whose class is the kind of which most small shapes are scattered in them: what the study's networks learn.

The most frequent of four kinds has two shapes more than the next, so that no part of the image tells the class: all
shapes have to be seen, wherever they lie, and all count alike. Colour, size, rotation and place are drawn independently
of it. A mirror image is of the same class.

Nothing is kept on disk: images are drawn in whole arrays, thousands in a second.
"""

from typing import NamedTuple

import numpy as np

SPLITS = ("train", "test")
KINDS = ("square", "triangle", "ring", "cross")
# How many shapes the most frequent kind has, one of these, and how many fewer the next.
MOST = (5, 6)
MARGIN = 2
CLUTTER = 4
GRAIN = 4.0
# In pixels: a shape lies near the centre of a cell, in which it has all its room.
CELL = 8
JITTER = 0.4
RADIUS = (3.0, 3.7)
# Images that are drawn at once: few enough for a cache.
AT_ONCE = 250


class Drawn(NamedTuple):
    """Drawn images.

    Attributes:
        images: `(n, 3, side, side)` uint8.
        labels: Index in `KINDS`, `(n,)` int64.
        counts: Shapes of each kind, `(n, 4)`.
    """

    images: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


def draw(count: int, side: int, split: str, seed: int = 0, clutter: int = CLUTTER, grain: float = GRAIN) -> Drawn:
    """Draws ``count`` images of all classes in equal numbers, or of numbers that differ by one.

    Args:
        count: Number of images.
        side: Side in pixels, a multiple of `CELL` and large enough for all shapes.
        split: "train" or "test", which share no image.
        seed: Of the data set.
        clutter: Strokes and dots in an image.
        grain: Standard deviation of the noise of each pixel.

    Raises:
        ValueError: Another ``split``, or a ``side`` that does not do.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    most_shapes = max(MOST) + (len(KINDS) - 1) * (max(MOST) - MARGIN)
    if side % CELL or (side // CELL) ** 2 < most_shapes + clutter:
        least = CELL * int(np.ceil((most_shapes + clutter) ** 0.5))
        raise ValueError(
            f"side must be a multiple of {CELL}, {least} or more for {clutter} pieces of clutter, got {side}"
        )
    rng = np.random.default_rng([seed, SPLITS.index(split), side])
    labels = rng.permutation(np.arange(count) % len(KINDS))
    counts = _counts(rng, labels)
    images = np.empty((count, 3, side, side), np.uint8)
    for start in range(0, count, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        canvas = _draw(rng, counts[part], side, clutter, grain)
        images[part] = np.clip(canvas, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return Drawn(images, labels.astype(np.int64), counts)


def _counts(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Shapes of each kind, `(n, kinds)`: the label's kind, the next, and others of no more than that."""
    kinds, rows = len(KINDS), np.arange(len(labels))
    most = rng.choice(MOST, len(labels))
    counts = rng.integers(0, most[:, None] - MARGIN + 1, (len(labels), kinds))
    second = (labels + rng.integers(1, kinds, len(labels))) % kinds
    counts[rows, second] = most - MARGIN
    counts[rows, labels] = most
    return counts


def _draw(rng: np.random.Generator, counts: np.ndarray, side: int, clutter: int, grain: float) -> np.ndarray:
    """Images with so many shapes of each kind, `(n, side, side, 3)` float32."""
    images, columns = len(counts), side // CELL
    canvas, base = _backgrounds(rng, images, side)
    free = rng.permuted(np.tile(np.arange(columns**2), (images, 1)), axis=1)
    used = np.zeros(images, int)
    pieces = [rng.multinomial(clutter, [0.5, 0.5], images)]
    wanted = np.concatenate((counts, *pieces), axis=1)
    for kind, outline in enumerate(OUTLINES):
        for number in range(wanted[:, kind].max(initial=0)):
            chosen = np.flatnonzero(wanted[:, kind] > number)
            cells = free[chosen, used[chosen]]
            used[chosen] += 1
            _paint(rng, canvas, base, chosen, outline, cells // columns * CELL, cells % columns * CELL)
    return canvas + grain * rng.standard_normal((images, side, side, 1), dtype=np.float32)


def _backgrounds(rng: np.random.Generator, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours that pass smoothly into one another, `(count, side, side, 3)` float32, and their mean `(count, 3)`."""
    base = rng.uniform(110, 130, (count, 3)).astype(np.float32)
    x = np.linspace(-1, 1, side, dtype=np.float32)
    slopes = rng.normal(0, 4, (2, count, 1, 1, 3)).astype(np.float32)
    canvas = base[:, None, None] + slopes[0] * x[:, None] + slopes[1] * x[:, None, None]
    return canvas, base


def _paint(rng, canvas: np.ndarray, base: np.ndarray, chosen: np.ndarray, outline, top: np.ndarray, left: np.ndarray):
    """Paints a shape into a cell of each of the chosen images, in a colour lighter than the background."""
    count, pixel = len(chosen), np.arange(CELL)
    middle = pixel + 0.5 - CELL / 2
    x = (middle - rng.uniform(-JITTER, JITTER, (count, 1)))[:, None, :].astype(np.float32)
    y = (middle - rng.uniform(-JITTER, JITTER, (count, 1)))[:, :, None].astype(np.float32)
    angle = rng.uniform(-np.pi / 7, np.pi / 7, (count, 1, 1)).astype(np.float32)
    radius = rng.uniform(*RADIUS, (count, 1, 1)).astype(np.float32)
    distance = outline(x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle), radius)
    # The part of a pixel that a straight edge at this distance leaves inside.
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    colour = (base[chosen] + rng.uniform(70, 120, (count, 3)).astype(np.float32))[:, None, None]
    window = chosen[:, None, None], (top[:, None] + pixel)[:, :, None], (left[:, None] + pixel)[:, None, :]
    under = canvas[window]
    canvas[window] = under + (colour - under) * coverage


# Signed distances to an outline, negative inside, up to a factor near one: x, y `(n, w, w)`, radius `(n, 1, 1)`.
def _square(x, y, radius):
    return np.maximum(np.abs(x), np.abs(y)) - 0.75 * radius


def _triangle(x, y, radius):
    return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.55 * radius


def _ring(x, y, radius):
    return np.abs(np.hypot(x, y) - 0.72 * radius) - 0.22 * radius


def _cross(x, y, radius):
    x, y, arm = np.abs(x), np.abs(y), 0.28 * radius
    return np.minimum(np.maximum(x - radius, y - arm), np.maximum(x - arm, y - radius))


def _stroke(x, y, radius):
    return np.maximum(np.abs(x) - radius, np.abs(y) - 0.2 * radius)


def _dot(x, y, radius):
    return np.hypot(x, y) - 0.4 * radius


# In the order of `KINDS`, then the clutter.
OUTLINES = (_square, _triangle, _ring, _cross, _stroke, _dot)

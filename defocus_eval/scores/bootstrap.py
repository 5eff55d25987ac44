"""Intervals by resampling images with replacement (Efron's bootstrap)."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95


def draw_weights(images: int, samples: int, seed: int) -> np.ndarray:
    """How often each image stands in each resampled set, `(samples, images)` uint8.

    The same seed gives the same sets, so two runs drawn alike are compared image by image.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((samples, images), np.uint8)
    for row in weights:
        row += np.bincount(rng.integers(0, images, images), minlength=images).astype(np.uint8)
    return weights


def interval(score: float, resampled: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """How far a score moves with the choice of images: the percentiles of its resampled values, moved onto it.

    A resampled set holds fewer different images than the real one, and average precision rises on such sets. The
    plain percentiles would be off by that rise, which is no property of the model; so they are taken relative to
    the median and laid around the score.

    Args:
        score: On the real set.
        resampled: On each resampled set; NaN where it is not defined.
        level: Share of the resampled values inside.

    Returns:
        Low and high, or None where the score is defined on fewer than half of the sets.
    """
    values = resampled[np.isfinite(resampled)]
    if len(values) * 2 < len(resampled) or not len(values):
        return None
    low, middle, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return [float(score + low - middle), float(score + high - middle)]


def interval_of_fraction(score: float, resampled: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """The same for a score between 0 and 1, which the interval does not leave."""
    found = interval(score, resampled, level)
    return found and [max(found[0], 0.0), min(found[1], 1.0)]

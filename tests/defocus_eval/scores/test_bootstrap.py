"""Intervals: drawn fairly and alike for a seed, and as wide as scores of fresh sets spread."""

import numpy as np
import pytest

from defocus_eval.scores.bootstrap import draw_weights, interval, interval_of_fraction


def test_each_resampled_set_is_as_large_as_the_real_one():
    weights = draw_weights(50, 400, 3)
    assert weights.shape == (400, 50) and (weights.sum(1) == 50).all()
    # With replacement: an image is left out with a chance of (1 - 1/50)^50.
    assert (weights == 0).mean() == pytest.approx(0.98**50, abs=0.01)
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.25)


def test_the_seed_decides():
    assert (draw_weights(20, 5, 1) == draw_weights(20, 5, 1)).all()
    assert (draw_weights(20, 5, 1) != draw_weights(20, 5, 2)).any()
    # More sets begin with the same.
    assert (draw_weights(20, 9, 1)[:5] == draw_weights(20, 5, 1)).all()


def test_percentiles_are_moved_onto_the_score():
    values = np.linspace(0.3, 0.5, 201)  # median 0.4, 95 % between 0.305 and 0.495
    assert interval(0.35, values) == pytest.approx([0.255, 0.445])
    assert interval(0.35, values, 0.5) == pytest.approx([0.30, 0.40])
    assert interval_of_fraction(0.02, values) == pytest.approx([0.0, 0.115])
    assert interval_of_fraction(0.97, values) == pytest.approx([0.875, 1.0])


def test_a_score_that_is_rarely_defined_has_no_interval():
    values = np.array([0.5, np.nan, np.nan])
    assert interval(0.5, values) is None and interval_of_fraction(0.5, values) is None
    assert interval(0.5, np.zeros(0)) is None
    assert interval(0.5, np.array([0.5, 0.5, np.nan])) == [0.5, 0.5]


def test_intervals_cover_what_they_say():
    """The mean of fresh sets: 95 % of the intervals hold the true one."""
    rng = np.random.default_rng(0)
    covered = 0
    weights = draw_weights(60, 200, 0)
    for _ in range(400):
        scores = rng.beta(2, 3, 60)
        low, high = interval(scores.mean(), weights @ scores / 60)
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 400 <= 0.98

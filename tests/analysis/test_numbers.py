"""Numbers of maps against literals, components against numpy's SVD."""

import math

import numpy as np
import pytest

from backbones.analysis import numbers


def test_entropy_and_effective_tokens():
    weights = np.array([[1, 1, 1, 1], [5, 0, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(numbers.entropy(weights), [math.log(4), 0, math.log(2), np.nan])
    np.testing.assert_allclose(numbers.effective_tokens(weights), [4, 1, 2, np.nan])
    # 1/2 log 2 + 1/4 log 4 + 1/4 log 4 = 3/2 log 2.
    assert numbers.entropy(np.array([0.5, 0.25, 0.25])) == pytest.approx(1.5 * math.log(2))
    assert not np.signbit(numbers.entropy(weights)[1])


def test_top_share_counts_whole_tokens():
    weights = np.ones(150)
    weights[[3, 77, 149]] = [51, 21, 11]
    # 147 + 51 + 21 + 11 = 230; one per cent of 150 tokens is two of them.
    assert numbers.top_share(weights) == pytest.approx(72 / 230)
    assert numbers.top_share(weights, 0.02) == pytest.approx(83 / 230)
    assert numbers.top_share(np.array([1.0, 3.0])) == 0.75
    assert np.isnan(numbers.top_share(np.zeros(5)))


def test_mean_distance():
    keys = np.array([[0, 0], [3, 4], [0, 1]])
    weights = np.array([[1, 1, 0], [0, 0, 2], [0, 0, 0]])
    queries = np.array([[0, 0], [0, 0], [1, 1]])
    np.testing.assert_allclose(numbers.mean_distance(weights, queries, keys), [2.5, 1, np.nan])


def test_gradient_numbers():
    np.testing.assert_allclose(numbers.gradient_reach(np.array([1, 2, 4])), [0.25, 0.5, 1])
    assert np.isnan(numbers.gradient_reach(np.zeros(2))).all()
    # The first third of four layers are two.
    assert numbers.early_share(np.array([1, 2, 3, 4])) == pytest.approx(0.3)
    assert numbers.early_share(np.ones(12)) == pytest.approx(1 / 3)


def test_mean_leaves_out_what_is_no_number():
    assert numbers.mean(np.array([1, np.nan, 4])) == 2.5
    assert math.isnan(numbers.mean(np.array([np.nan])))


@pytest.mark.parametrize("shape", [(40, 7), (5, 30)])
def test_components_are_those_of_the_svd(shape):
    features = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    scores, variance = numbers.principal_components(features)
    left, sizes, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    truth = (left * sizes)[:, :3]
    truth *= np.sign(truth[np.abs(truth).argmax(0), range(3)])
    np.testing.assert_allclose(scores, truth, atol=1e-9 * sizes[0])
    np.testing.assert_allclose(variance, sizes[:3] ** 2 / (sizes**2).sum())
    assert (scores[np.abs(scores).argmax(0), range(3)] > 0).all()


def test_components_that_are_not_there_are_zero():
    scores, variance = numbers.principal_components(np.array([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]))
    np.testing.assert_allclose(variance, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.abs(scores[:, 0]), np.sqrt(5) * np.array([1, 1, 0]), atol=1e-12)
    np.testing.assert_allclose(scores[:, 1:], 0, atol=1e-7)
    scores, variance = numbers.principal_components(np.ones((4, 5)))
    assert not scores.any() and not variance.any()

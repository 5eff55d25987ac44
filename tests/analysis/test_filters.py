"""Filters of a state dict against literals and the published initial values."""

import math

import numpy as np
import pytest
import torch

from backbones.analysis import LayerFilters, initial_filters, learned_filters
from backbones.checkpoints import describe_backbone
from backbones.defocus import FAMILIES
from tests.test_families import TINY

FILTER = LayerFilters("blocks.0", np.array([[-0.05, -0.2]]), np.array([[0.3, 1.0]]))


def test_response_is_the_published_one():
    omega = np.array([0.3, 0.35, 0.3 - 0.05])
    # At the centre 1 / |λ|, and half the power at a distance of |λ|.
    np.testing.assert_allclose(FILTER.response(omega)[0, 0], [20, 20 / math.sqrt(2), 20 / math.sqrt(2)])
    far = 1 / 0.2 / math.sqrt(1 + (0.7 / 0.2) ** 2)
    assert FILTER.response(omega)[0, 1, 0] == pytest.approx(far)
    np.testing.assert_allclose(FILTER.width, [[0.1, 0.4]])
    np.testing.assert_allclose(0.5, np.exp(FILTER.decay * FILTER.half_life))


def test_passband_of_a_bank():
    gains = np.array([1.0, 0.2 * 1 / 0.2 / math.sqrt(1 + (0.7 / 0.2) ** 2)])
    assert FILTER.passband(np.array([0.3]))[0, 0] == pytest.approx(math.sqrt((gains**2).mean()))
    # Without decay a filter passes its own frequency and nothing else.
    endless = LayerFilters("", np.zeros((1, 1)), np.array([[0.3]]))
    assert endless.passband(np.array([0.3, 0.4])).tolist() == [[1, 0]]
    assert np.isinf(endless.half_life).all() and np.isinf(endless.response(np.array([0.3]))).all()


def test_initial_values_of_mamba():
    """Steps of the bias from 0.001 to 0.1, A from -1 to -16."""
    weights = FAMILIES["DefocusMamba"](TINY["DefocusMamba"]).state_dict()
    first, second = learned_filters(weights)
    assert (first.name, second.name, first.decay.shape) == ("blocks.0", "blocks.1", (128, 16))
    np.testing.assert_allclose(first.decay[0], -0.001 * np.arange(1, 17), rtol=1e-3)
    np.testing.assert_allclose(first.decay[-1], -0.1 * np.arange(1, 17), rtol=1e-3)
    np.testing.assert_allclose(first.phase[5], (100 ** (-np.arange(1, 17) / 16) - 0.01) / 0.99, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["DefocusViT", "DefocusRetNet"])
def test_initial_values_of_heads(family):
    (layer, _) = learned_filters(FAMILIES[family](TINY[family]).state_dict())
    np.testing.assert_allclose(np.exp(layer.decay[:, 0]), [1 - 1 / 32, 1 - 1 / 128, 1 - 1 / 512], rtol=1e-5)
    np.testing.assert_allclose(layer.phase, np.tile(10000 ** (-np.arange(0, 16, 2) / 16), (3, 1)), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_divide(family):
    weights = FAMILIES[family](TINY[family]).state_dict()
    for plain, scaled in zip(learned_filters(weights), learned_filters(weights, rope_scale=20.0, delta_scale=4.0)):
        np.testing.assert_allclose(scaled.decay, plain.decay / 4)
        np.testing.assert_allclose(scaled.phase, plain.phase / 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_before_training_are_the_initial_values(family):
    model = FAMILIES[family](TINY[family])
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    before, truth = initial_filters(model.state_dict(), 2.0, 3.0), learned_filters(fresh, 2.0, 3.0)
    assert len(before) == 2
    for found, expected in zip(before, truth, strict=True):
        assert found.name == expected.name
        np.testing.assert_array_equal(found.decay, expected.decay)
        np.testing.assert_array_equal(found.phase, expected.phase)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("absent", ["decay", "phase"])
def test_what_is_absent_does_nothing(family, absent):
    whole = learned_filters(FAMILIES[family](TINY[family]).state_dict())[0]
    weights = FAMILIES[family](TINY[family], **{absent: "none"}).state_dict()
    layer = learned_filters(weights)[0]
    assert not getattr(layer, absent).any()
    other = "phase" if absent == "decay" else "decay"
    there = np.broadcast_arrays(getattr(layer, other), getattr(whole, other))
    np.testing.assert_array_equal(*there)
    # The family is told by its decay.
    if absent == "decay":
        assert describe_backbone({name: value.shape for name, value in weights.items()})[0] == ""
        assert initial_filters(weights) is None


def test_without_filters_there_is_nothing_to_show():
    weights = FAMILIES["DefocusViT"](TINY["DefocusViT"], decay="none", phase="none").state_dict()
    with pytest.raises(ValueError, match=r"blocks\.0 has neither decay nor phase"):
        learned_filters(weights)

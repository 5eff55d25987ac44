"""The recipes on layers whose attention is known, and against finite differences."""

import pytest
import torch

from backbones.analysis import recipes
from backbones.analysis.recipes import (
    attention_map,
    gradient_maps,
    layer_inputs,
    pixel_erf,
    pull_back,
    query_gradients,
    receptive_field,
)
from tests.mixers.test_blocks import FAMILIES, randomise
from tests.testing import assert_close

F64 = torch.float64
N, C = 9, 4


def tokens(n=N, c=C):
    return torch.randn(1, n, c, dtype=F64)


def shift(k):
    return lambda x: torch.cat((torch.zeros_like(x[:, :k]), x[:, : x.shape[1] - k]), dim=1)


def test_identity_looks_at_itself_and_less_the_residual_at_nothing():
    weights = query_gradients(lambda x: x, tokens(), range(N))
    assert_close(weights, torch.eye(N, dtype=F64))
    assert not attention_map(lambda x: x, tokens(), range(N)).any()


@pytest.mark.parametrize("k", [1, 3])
def test_a_shift_looks_at_one_token_k_before(k):
    field = receptive_field(shift(k), tokens(), class_token=N - 1)
    expected = torch.zeros(N, dtype=F64)
    expected[N - 1 - k] = 1
    assert_close(field, expected)
    weights = attention_map(shift(k), tokens(), range(k, N))
    assert_close(weights, torch.eye(N, dtype=F64)[: N - k])


def test_a_fixed_filter_is_its_impulse_response():
    kept = 0.7 ** (torch.arange(N, dtype=F64)[:, None] - torch.arange(N, dtype=F64)).clamp_min(0)
    response = kept.tril()
    assert_close(query_gradients(lambda x: response @ x, tokens(), range(N)), response)
    assert_close(attention_map(lambda x: response @ x, tokens(), range(N)), response - torch.eye(N, dtype=F64))


def test_averaging_looks_everywhere_alike():
    field = receptive_field(lambda x: x.mean(1, keepdim=True).expand_as(x), tokens(), class_token=2)
    assert_close(field, torch.full((N,), 1 / N, dtype=F64))


@pytest.mark.parametrize("at_once", [1, 3 * N, 1000])
def test_queries_in_blocks_of_any_size(monkeypatch, at_once):
    mixing = torch.randn(N, N, dtype=F64)
    monkeypatch.setattr(recipes, "TOKENS_AT_ONCE", at_once)
    queries = [7, 0, 3, 3, 8, 1, 5]
    assert_close(query_gradients(lambda x: mixing @ x, tokens(), queries), mixing[queries].abs())
    assert query_gradients(lambda x: mixing @ x, tokens(), []).shape == (0, N)


def differences(function, x, h=1e-6):
    """∂function/∂x of one sample by central differences: `(outputs, *x.shape)`, all shifted samples in one batch."""
    steps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(x.numel(), *x.shape[1:])
    with torch.no_grad():
        change = (function(x + steps) - function(x - steps)) / (2 * h)
    return change.T.reshape(-1, *x.shape[1:])


@pytest.fixture(params=FAMILIES)
def block(request):
    kind, arch, _ = FAMILIES[request.param]
    return randomise(kind(arch)).double().eval(), arch.embed_dims


def test_query_gradients_of_each_family_by_finite_differences(block):
    layer, dims = block
    x = tokens(6, dims)
    truth = differences(lambda batch: torch.linalg.vector_norm(layer(batch), dim=-1), x).norm(dim=-1)
    assert_close(query_gradients(layer, x, range(6)), truth, tolerance=1e-6)


def test_gradient_maps_of_each_family_by_finite_differences(block):
    layer, dims = block
    layers, x = [layer, torch.tanh, layer], tokens(5, dims)
    weight = torch.randn(dims, dtype=F64)
    inputs = layer_inputs(layers, x)
    maps = gradient_maps(layers, inputs, lambda y: (y * weight).sum().square())
    for first, found in enumerate(maps):

        def rest(batch, first=first):
            for function in layers[first:]:
                batch = function(batch)
            return (batch * weight).sum((1, 2))[:, None].square()

        assert_close(found, differences(rest, inputs[first])[0].norm(dim=-1), tolerance=1e-6)


def test_layer_inputs_end_with_the_output():
    inputs = layer_inputs([lambda x: 2 * x, lambda x: x + 1], torch.ones(1, 2, 1))
    assert [x[0, 0, 0].item() for x in inputs] == [1, 2, 3]


def test_pull_back_of_several_gradients():
    mixing, grads = torch.randn(N, N, dtype=F64), torch.randn(5, N, C, dtype=F64)
    assert_close(pull_back(lambda x: mixing @ x, tokens(), grads), mixing.T @ grads)


def test_pixels_of_a_known_convolution():
    """Only positive features and positive gradients count: a channel that is negative adds nothing."""
    kernel = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    weight = torch.stack((kernel, -kernel))[:, None].repeat(1, 2, 1, 1)
    weight[:, 1] *= 2

    def convolve(images):
        return torch.nn.functional.conv2d(images, weight).flatten(2).transpose(1, 2)

    image = torch.ones(1, 2, 4, 5)
    functions = [convolve, lambda x: 10 * x]
    field = pixel_erf(functions, layer_inputs(functions, image), [0, 6])
    expected = torch.zeros(2, 4, 5)
    # Both channels of the image, the second with twice the weights; ten times.
    expected[0, 0:2, 0:2] = expected[1, 1:3, 2:4] = 30 * kernel.clamp_min(0)
    assert torch.equal(field, expected)


def test_no_graph_is_left_behind():
    layer = torch.nn.Linear(C, C).double()
    x = tokens().requires_grad_()
    found = query_gradients(layer, x, [1])
    assert not found.requires_grad and x.grad is None and layer.weight.grad is None

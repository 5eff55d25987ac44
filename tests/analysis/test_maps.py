"""All maps of a network, on networks whose attention is known and on small ones of each family."""

import json
import math

import numpy as np
import pytest
import torch

from backbones.analysis import Layer, Network, cut, layer_inputs, map_layers, maps, measure, measuring, query_gradients
from backbones.analysis.maps import layer_runs
from backbones.analysis.models import sequence_layout
from backbones.classifier import CLASSIFIERS
from backbones.defocus import FAMILIES
from backbones.layers.scan_order import TokenGrid
from tests.test_families import TINY

# Two sections of 2 × 2, the second half padding; the class token last: cells 0 1 3 4 | 2 - 5 - | -.
LAYOUT = sequence_layout(TokenGrid(2, 3, 2, 4, (2, 2)), 16)
# The same without padding: 4 × 4 in row order.
PLAIN = sequence_layout(TokenGrid(4, 4, 4, 4, None), 16)


def network_of(run, layout, causal=False, depth=2):
    layers = tuple(Layer(f"layer{i}", run, layout, layout, causal) for i in range(depth))
    patches = layout.padding.sum() + len(layout.image_tokens)

    def embed(image):
        tokens = image.flatten(2).transpose(1, 2)[:, :patches]
        return torch.cat((tokens, tokens[:, :1]), dim=1)

    def loss(tokens, target):
        return tokens[:, :-1].sum()

    return Network("Known", embed, layers, lambda x: x, None, loss)


def shift(k):
    return lambda x: torch.cat((torch.zeros_like(x[:, :k]), x[:, : x.shape[1] - k]), dim=1)


def average(x):
    return x.mean(1, keepdim=True).expand_as(x)


IMAGE = torch.rand(1, 3, 8, 8) + 0.1


def test_averaging_in_numbers():
    found = measure(network_of(average, PLAIN), IMAGE, queries=16).layers[0].numbers
    field, attention = found["receptive_field"], found["attention"]
    # 16 tokens lie on the image; a query leaves itself out.
    assert field["effective_tokens"] == pytest.approx(16) and field["entropy"] == pytest.approx(math.log(16))
    assert field["effective_share"] == pytest.approx(1) and field["top_share"] == pytest.approx(1 / 16)
    # The class token is token 16, the others stand 1 to 16 before it.
    assert field["distance_tokens"] == pytest.approx(8.5)
    assert attention["queries"] == 16 and attention["effective_tokens"] == pytest.approx(15)
    assert attention["effective_share"] == pytest.approx(1) and attention["top_share"] == pytest.approx(1 / 15)
    places = np.array([(row, column) for row in range(4) for column in range(4)])
    apart = np.sqrt(((places[:, None] - places) ** 2).sum(-1))
    assert attention["distance_patches"] == pytest.approx(apart.sum() / (16 * 15))
    assert attention["distance_tokens"] == pytest.approx(17 / 3)
    assert attention["on_padding"] is None


def test_a_shift_in_numbers():
    """Three tokens before: those of the first row but one look at the row above, and the first three at nothing."""
    found = measure(network_of(shift(3), PLAIN, causal=True), IMAGE, queries=16).layers[0].numbers
    attention = found["attention"]
    assert attention["effective_tokens"] == pytest.approx(1) and attention["entropy"] == pytest.approx(0)
    assert attention["distance_tokens"] == pytest.approx(3) and attention["top_share"] == 1
    # Query t has t tokens before it; the first three look at nothing.
    assert attention["effective_share"] == pytest.approx(np.mean([1 / t for t in range(3, 16)]))
    # One row up and one column to the right; from the last column three columns to the left.
    assert attention["distance_patches"] == pytest.approx(np.mean([3 if t % 4 == 3 else 2**0.5 for t in range(3, 16)]))
    assert found["receptive_field"]["distance_tokens"] == pytest.approx(3)


def test_padding_is_told_apart():
    found = measure(network_of(average, LAYOUT), IMAGE, queries=16)
    numbers = found.layers[0].numbers
    assert numbers["receptive_field"]["effective_tokens"] == pytest.approx(6)
    # Of nine tokens six lie on the image, two are padding, and one is the class token, which does not count.
    assert numbers["receptive_field"]["on_padding"] == pytest.approx(2 / 8)
    assert numbers["attention"]["on_padding"] == pytest.approx(2 / 7)
    assert numbers["attention"]["effective_tokens"] == pytest.approx(5)


def test_the_gradient_by_layer():
    """Halving in each of three layers: what arrives doubles towards the loss."""
    found = measure(network_of(lambda x: x / 2, PLAIN, depth=3), IMAGE)
    numbers = [layer.numbers["gradient"] for layer in found.layers]
    assert [n["of_last_layer"] for n in numbers] == pytest.approx([0.25, 0.5, 1])
    # Three channels of 1 at each of 16 tokens, halved once.
    assert numbers[2]["norm"] == pytest.approx(math.sqrt(3 * 16) / 2)
    assert numbers[0]["effective_tokens"] == pytest.approx(16)
    assert found.summary["early_gradient_share"] == pytest.approx(0.25 / 1.75)
    assert found.loss == "no head: the norm of the mean of the last tokens on the image"


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_maps_are_those_of_the_recipes(family):
    model = CLASSIFIERS[family](TINY[family], num_classes=5, section_size=32)
    image, ticks = torch.randn(1, 3, 75, 107), []
    with measuring(model):
        network = cut(model, image)
        found = measure(network, image, layers=[-1], queries=6, target=3, tick=lambda: ticks.append(1))
        inputs = layer_inputs([layer.run for layer in network.layers], network.embed(image))
        weights = [query_gradients(layer.run, x, range(49)).numpy() for layer, x in zip(network.layers, inputs)]
        features = model.forward_maps(image, (1,))[0]
    assert len(ticks) == layer_runs(2) == 8 and found.drawn == (1,)
    assert found.loss == "training loss for class 3"
    for layer, truth in zip(found.layers, weights, strict=True):
        np.testing.assert_allclose(layer.receptive_field, truth[48], rtol=1e-3, atol=1e-5 * truth[48].max())
    last = found.layers[1]
    expected = weights[1][last.queries]
    expected[range(len(last.queries)), last.queries] = 0
    np.testing.assert_allclose(last.attention, expected, rtol=1e-3, atol=1e-5 * expected.max())
    # The three cells and six of a grid of 2 × 3, of which one may be a cell.
    assert 6 <= len(last.queries) <= 9
    assert {last.layer.after.token_at(*cell) for cell in found.cells} <= set(last.queries)
    # All of a causal network's weight lies in the past.
    assert not any(row[query + 1 :].any() for row, query in zip(last.attention, last.queries))
    # Components of what the map holds, but for sign and order: their lengths are theirs.
    flat = features[0].flatten(1).T.double()
    sizes = torch.linalg.svdvals(flat - flat.mean(0))[:3]
    np.testing.assert_allclose(np.linalg.norm(last.features.reshape(-1, 3), axis=0), sizes, rtol=1e-3)
    # The loss by autograd through the whole.
    tokens = network.embed(image).detach().requires_grad_()
    network.loss(model.norm(model.run_blocks(tokens)), torch.tensor([3])).backward()
    truth = tokens.grad[0].norm(dim=-1)
    np.testing.assert_allclose(found.layers[0].gradient, truth, rtol=1e-3, atol=1e-5 * truth.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_of_the_whole_network(family):
    model = FAMILIES[family](TINY[family], section_size=32)
    image = torch.randn(1, 3, 40, 50)
    with measuring(model):
        found = measure(cut(model, image), image, cells=[(0.0, 0.0), (0.9, 0.1)], erf_layers=[0, -1])
        for layer in (0, 1):
            pixels = image.clone().requires_grad_()
            model.forward_maps(pixels, (layer,))[0][0, :, 2, 0].clamp_min(0).sum().backward()
            truth = pixels.grad[0].clamp_min(0).sum(0)
            np.testing.assert_allclose(found.erf[layer][1], truth, rtol=1e-3, atol=1e-5 * truth.max())
    # The first token of a causal network has seen its own patch alone.
    first = found.erf[1][0]
    assert first[:16, :16].any() and not first[16:].any() and not first[:, 16:].any()


def test_arrays_have_names_and_numbers_fit_into_json():
    found = measure(network_of(average, LAYOUT), IMAGE, layers=[1], cells=[(0.5, 0.5)], queries=0)
    arrays = found.arrays()
    assert {name for name in arrays if name.startswith("layer0/")} == {
        "layer0/gradient", "layer0/grid", "layer0/token_cells", "layer0/receptive_field",
    }  # fmt: skip
    assert arrays["layer1/attention"].shape == (1, 9) and arrays["layer1/queries"].tolist() == [2 + 1]
    assert (
        arrays["layer1/grid"].tolist() == [2, 3, 16]
        and "layer0/erf" not in arrays
        and arrays["layer1/erf"].shape == (1, 8, 8)
    )
    json.dumps([layer.numbers for layer in found.layers] + [found.summary], allow_nan=False)


def test_the_predicted_class_is_the_default():
    model = CLASSIFIERS["DefocusViT"](TINY["DefocusViT"], num_classes=5)
    image = torch.randn(1, 3, 32, 32)
    with measuring(model):
        found = measure(cut(model, image), image, queries=0)
        assert found.loss == f"training loss for class {model(image).argmax().item()}, which is predicted"
        with pytest.raises(ValueError, match="there is no class 5: the head has 5, from 0 on"):
            measure(cut(model, image), image, target=5)


def test_what_is_refused():
    network = network_of(average, PLAIN)
    with pytest.raises(ValueError, match="there is no layer 2: this network has 2"):
        measure(network, IMAGE, layers=[0, 2])
    with pytest.raises(ValueError, match="this Known has no head, and so no class 1"):
        measure(network, IMAGE, target=1)
    with pytest.raises(ValueError, match=r"as fractions, 0 to 1, of the image; got \(0.5, 1.5\)"):
        measure(network, IMAGE, cells=[(0.5, 1.5)])


def test_layers_to_draw():
    assert map_layers(24) == (6, 12, 18, 22) and map_layers(12) == (3, 6, 9, 10)
    assert map_layers(1) == (0,) and map_layers(2) == (0, 1)
    assert map_layers(12, [-1, 3, 11]) == (3, 11)


def test_queries_by_default_are_fewer_the_longer_the_sequence(monkeypatch):
    def queries(**settings):
        return len(measure(network_of(average, PLAIN), IMAGE, cells=[(0, 0)], **settings).layers[0].queries)

    assert queries() == queries(queries=16) == queries(queries=10**9) == 16
    # 17 tokens of sequence: four queries take 68, on a grid of 2 × 2 that leaves out the first cell.
    monkeypatch.setattr(maps, "TOKENS_OF_QUERIES", 70)
    assert queries() == queries(queries=4) == 5
    assert queries(queries=0) == 1

"""What is a layer and where a token lies, in our networks and in timm's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import DefocusMamba, DefocusViT
from backbones.analysis import cut, measuring, query_gradients
from backbones.analysis.models import sequence_layout
from backbones.classifier import CLASSIFIERS
from backbones.layers.scan_order import TokenGrid
from tests.test_families import TINY

TIMM = {
    "vit": ("vit_tiny_patch16_224", dict(img_size=64, embed_dim=48, depth=2, num_heads=3)),
    "vit with registers": ("vit_tiny_patch16_224", dict(img_size=64, embed_dim=48, depth=2, num_heads=3, reg_tokens=2)),
    "vit of means": (
        "vit_tiny_patch16_224",
        dict(img_size=(32, 64), embed_dim=48, depth=2, num_heads=3, class_token=False, global_pool="avg"),
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        dict(img_size=56, embed_dim=24, depths=(2, 1), num_heads=(1, 2), window_size=7),
    ),
    # Its blocks would begin as their shortcuts alone.
    "resnet": ("resnet10t", dict(zero_init_last=False)),
}


def timm_model(kind):
    timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    name, settings = TIMM[kind]
    model = timm.create_model(name, num_classes=5, **settings).eval()
    size = settings.get("img_size", (70, 100))
    return model, torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size)))


def run(network, image):
    tokens = network.embed(image)
    for layer in network.layers:
        assert tokens.shape[1] == len(layer.before.cells)
        tokens = layer.run(tokens)
        assert tokens.shape[1] == len(layer.after.cells)
    return network.finish(tokens)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_layers_are_the_classifier(family):
    model = CLASSIFIERS[family](TINY[family], num_classes=5, section_size=32).eval()
    image, target = torch.randn(1, 3, 75, 107), torch.tensor([3])
    network = cut(model, image)
    tokens = run(network, image)
    assert torch.equal(network.logits(tokens), model(image))
    assert torch.equal(network.loss(tokens, target), model.loss(image, target))
    layout = network.layers[0].before
    assert (layout.rows, layout.columns, layout.stride) == (5, 7, 16)
    # Padded to 6 × 8 tokens, and the class token after them.
    assert len(layout.cells) == 49 and layout.padding.sum() == 13 and layout.class_token == 48


@pytest.mark.parametrize("kind", TIMM)
def test_the_layers_are_timms_model(kind):
    model, image = timm_model(kind)
    network = cut(model, image)
    tokens = run(network, image)
    torch.testing.assert_close(network.logits(tokens), model(image))
    target = torch.tensor([2])
    torch.testing.assert_close(network.loss(tokens, target), F.cross_entropy(model(image), target))


def test_grids_of_timms_models():
    network = cut(*timm_model("vit with registers"))
    layout = network.layers[0].before
    assert (layout.rows, layout.columns, layout.stride, layout.class_token) == (4, 4, 16, 0)
    assert layout.cells[:4].tolist() == [-1, -1, -1, 0] and not layout.padding.any()
    assert cut(*timm_model("vit of means")).layers[0].before.class_token is None
    network = cut(*timm_model("swin"))
    grids = [(layer.before, layer.after) for layer in network.layers]
    assert [(before.rows, before.stride, after.rows, after.stride) for before, after in grids] == [
        (14, 4, 14, 4), (14, 4, 14, 4), (14, 4, 7, 8),
    ]  # fmt: skip
    assert [layer.residual for layer in network.layers] == [True, True, False]
    network = cut(*timm_model("resnet"))
    assert [(layer.after.rows, layer.after.columns, layer.after.stride) for layer in network.layers] == [
        (18, 25, 4), (9, 13, 8), (5, 7, 16), (3, 4, 32),
    ]  # fmt: skip


def test_a_window_and_a_convolution_see_what_they_should():
    """Swin's first block sees its window of 7 × 7, two convolutions of 3 × 3 see two cells about."""
    model, image = timm_model("swin")
    layer = cut(model, image).layers[0]
    seen = query_gradients(layer.run, torch.randn(1, 196, 24), [layer.before.token_at(0.7, 0.2)])
    seen = layer.before.to_map(seen.numpy())[0] > 0
    expected = np.zeros((14, 14), bool)
    expected[7:, :7] = True
    assert np.array_equal(seen, expected)
    model, image = timm_model("resnet")
    layer = cut(model, image).layers[0]
    tokens = cut(model, image).embed(image).detach()
    seen = layer.before.to_map(query_gradients(layer.run, tokens, [4 * 25 + 10]).numpy())[0] > 0
    expected = np.zeros((18, 25), bool)
    expected[2:7, 8:13] = True
    # A cell that ReLU closes on the way hides what is behind it, none adds one.
    assert seen[4, 10] and not seen[~expected].any() and seen.sum() > 15


def test_the_order_is_that_of_the_scan():
    grid = TokenGrid(3, 3, 4, 4, (2, 2))
    layout = sequence_layout(grid, 16)
    assert layout.cells.tolist() == [0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1, -1]
    for rows, columns, section in ((5, 7, (3, 2)), (4, 6, None)):
        padded = (6, 8) if section else (4, 6)
        grid = TokenGrid(rows, columns, *padded, section)
        cells = torch.arange(1, rows * columns + 1.0).reshape(1, 1, rows, columns)
        layout = sequence_layout(grid, 16)
        assert np.array_equal(layout.cells + 1, grid.to_sequence(cells)[0, :, 0].numpy())
        values = np.random.default_rng(0).normal(size=(2, len(layout.cells)))
        maps = grid.to_map(torch.tensor(values)[..., None]).squeeze(1)
        assert np.array_equal(layout.to_map(values), maps.numpy())


def test_places_on_the_image():
    layout = sequence_layout(TokenGrid(3, 3, 4, 4, (2, 2)), 16)
    assert layout.token_at(0, 0) == 0 and layout.token_at(1, 1) == 12 and layout.token_at(0.5, 0.99) == 6
    assert layout.positions[4].tolist() == [8, 40]


def test_without_a_head_the_loss_is_the_norm_of_the_mean():
    model = DefocusMamba(TINY["DefocusMamba"], section_size=32)
    image = torch.randn(1, 3, 40, 40)
    network = cut(model, image)
    assert network.logits is None
    tokens = run(network, image)
    # The class token and those of padding do not count.
    expected = model(image)[0].mean((2, 3)).norm()
    torch.testing.assert_close(network.loss(tokens, None), expected)


def test_blocks_after_the_last_map_do_not_run():
    model = DefocusViT(TINY["DefocusViT"], out_indices=(0,))
    image = torch.randn(1, 3, 32, 32)
    network = cut(model, image)
    assert [layer.name for layer in network.layers] == ["blocks.0"]
    assert torch.equal(run(network, image)[:, :-1].transpose(1, 2).reshape(1, -1, 2, 2), model(image)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_who_is_causal(causal):
    model = DefocusViT(TINY["DefocusViT"], causal=causal).eval()
    with measuring(model):
        layer = cut(model, torch.randn(1, 3, 48, 48)).layers[0]
        weights = query_gradients(layer.run, torch.randn(1, 10, 48), [4])
    assert layer.causal == causal and bool((weights[0, 5:] > 0).all()) != causal
    assert (weights[0, :5] > 0).all() and (not causal or not weights[0, 5:].any())


def test_measuring_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[2].eval()
    with measuring(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model] == [True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="a layer of a Linear is not known here: give a De-focus backbone"):
        cut(nn.Linear(3, 3), torch.randn(1, 3, 8, 8))

"""Whole blocks, backbones and pyramids against arithmetic by hand; what the list of the uncounted holds."""

import pytest
import torch
from torch import nn

from backbones import SimpleFPN
from backbones.defocus import FAMILIES
from backbones.flops import FlopCounter
from backbones.flops.operators import ELEMENTWISE, MOVES, NORMS
from backbones.ops import dispatch
from backbones.ops.dispatch import Backend, Operation, serves_every_device
from tests.test_families import TINY


def mamba_block(tokens):
    """64 wide, 128 within, rank 4, 16 states, 4 taps."""
    products = 64 * 256 + 128 * (4 + 16 + 16) + 4 * 128 + 128 * 64
    return 2 * tokens * (products + 128 * 4) + tokens * 128 * (9 * 16 + 2)


def vit_block(tokens, batch=1):
    """48 wide, 3 heads of 16, an MLP of 192."""
    length = tokens // batch
    pairs = batch * length * (length + 1) // 2
    return 2 * tokens * (48 * 144 + 48 * 48 + 2 * 48 * 192) + 2 * 3 * pairs * (16 + 16)


def retnet_block(tokens):
    """48 wide, values 96, 3 heads of 16 × 32, a gated network of 64."""
    products = 2 * 48 * 48 + 2 * 48 * 96 + 96 * 48 + 3 * 48 * 64
    return 2 * tokens * products + 5 * tokens * 3 * 16 * 32


BLOCKS = {"DefocusMamba": mamba_block, "DefocusViT": vit_block, "DefocusRetNet": retnet_block}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_counts_as_by_hand(family):
    model = FAMILIES[family](arch=TINY[family])
    with torch.no_grad(), FlopCounter() as counter:
        model.blocks[0](torch.randn(1, 10, model.embed_dims))
    assert counter.counts.flops == BLOCKS[family](10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_counts_as_by_hand_and_by_module(family):
    model = FAMILIES[family](arch=TINY[family])
    with torch.no_grad(), FlopCounter(model) as counter:
        model(torch.randn(2, 3, 40, 24))
    # 3 × 2 patches of 3·16·16 numbers, and the class token, of two images.
    patches = 2 * 12 * 768 * model.embed_dims
    block = vit_block(14, batch=2) if family == "DefocusViT" else BLOCKS[family](14)
    assert counter.counts.flops == patches + 2 * block
    assert counter.counts.within("patch_embed") == patches
    assert counter.counts.within("blocks.1") == block
    assert counter.counts.within("blocks") == 2 * block and counter.counts.within("") == counter.counts.flops


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_pyramid_counts_as_by_hand(inference):
    pyramid = SimpleFPN(in_channels=64, out_channels=32)
    with inference(), FlopCounter() as counter:
        pyramid((torch.randn(1, 64, 4, 4),))
    # Transposed convolutions of 2 × 2 from 16 and 64 pixels; 1 × 1 and 3 × 3 on 256, 64, 16 and 4 pixels.
    up = 2 * 4 * (16 * 64 * 32 + 64 * 32 * 16 + 16 * 64 * 32)
    ones = 2 * (256 * 16 * 32 + 64 * 32 * 32 + 16 * 64 * 32 + 4 * 64 * 32)
    threes = 2 * (256 + 64 + 16 + 4) * 9 * 32 * 32
    assert counter.counts.flops == up + ones + threes


def test_what_is_not_counted_is_listed():
    x = torch.randn(3, 4)
    with FlopCounter() as counter:
        (x + 1).relu_().sum()
        x.reshape(4, 3).clone()
        nn.functional.interpolate(x[None, None], scale_factor=2, mode="bilinear")
    found = counter.counts.uncounted
    assert counter.counts.flops == 0
    assert (found[ELEMENTWISE].calls, found[ELEMENTWISE].elements) == (2, 24)
    assert (found[NORMS].calls, found[NORMS].elements) == (1, 1)
    assert found[MOVES].calls >= 2
    assert found["aten.upsample_bilinear2d"].elements == 48
    assert set(found) == {ELEMENTWISE, NORMS, MOVES, "aten.upsample_bilinear2d"}


def test_an_operator_of_a_stranger_is_listed_by_name():
    with torch.library._scoped_library("a_stranger", "DEF") as library:
        library.define("mystery(Tensor x) -> Tensor")
        library.impl("mystery", lambda x: x.new_ones(5), "CPU")
        with FlopCounter() as counter:
            torch.ops.a_stranger.mystery(torch.randn(2))
            torch.ops.a_stranger.mystery(torch.randn(2))
    entry = counter.counts.uncounted["a_stranger.mystery"]
    assert (entry.calls, entry.elements) == (2, 10)


def test_an_operation_without_formula_is_listed_and_its_products_count(monkeypatch):
    monkeypatch.setattr(dispatch, "_operations", dict(dispatch._operations))
    backend = Backend("torch", lambda x: x @ x, serves_every_device)
    operation = Operation("new_operation", (backend,), environment="NOT_SET")
    with FlopCounter() as counter:
        operation.run(None, torch.randn(4, 4))
    assert counter.counts.by_operator == {"aten.mm": 2 * 4 * 4 * 4}
    assert counter.counts.uncounted["new_operation"].elements == 16


def test_the_fused_layers_of_torch_are_taken_apart():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad(), FlopCounter() as counter:
        layer(torch.randn(1, 5, 8))
    products = 4 * 8 * 8 + 2 * 8 * 16
    assert counter.counts.flops == 2 * 5 * products + 2 * 2 * 5 * 5 * (4 + 4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_error_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    with pytest.raises(RuntimeError), FlopCounter(model) as counter:
        model(torch.randn(2, 4))
    assert counter.counts.within("0") == 2 * 2 * 16 and dispatch._watcher is None
    assert torch.backends.mha.get_fastpath_enabled()
    with FlopCounter(model) as again:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 4))
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert again.counts.by_module == {"0": 64, "": 16}

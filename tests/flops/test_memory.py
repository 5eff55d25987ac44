"""Bytes of activations against sums by hand, on real tensors and on fake ones."""

import pytest
import torch
from torch import nn

from backbones.flops import shapes_only
from backbones.flops.memory import KeptForBackward, PeakMemory


def run_on(fake, function):
    if fake:
        with shapes_only():
            return function()
    return function()


@pytest.mark.parametrize("fake", [False, True])
def test_the_peak_is_what_is_alive_at_once(fake):
    def run():
        x = torch.empty(1000)
        with PeakMemory() as memory:
            a = x * 2  # 4 kB
            b = a.double()  # 8 kB: 12 at once
            del a
            c = b[:500].reshape(5, 100)  # a view
            c.add_(1)
            x.mul_(3)  # was there before
            d = torch.empty(250)  # 1 kB
            del b, c, d
        return memory.peak

    assert run_on(fake, run) == 12000


@pytest.mark.parametrize("fake", [False, True])
def test_a_storage_in_the_place_of_one_that_is_gone_counts(fake):
    def run():
        before = [torch.empty(1000) for _ in range(50)]
        with PeakMemory() as memory:
            for x in before:
                x.add_(1)
            del x
            before.clear()
            made = [torch.empty(1000) for _ in range(50)]
        return memory.peak, len(made)

    assert run_on(fake, run) == (50 * 4000, 50)


@pytest.mark.parametrize("fake", [False, True])
def test_what_is_kept_for_backward_counts_each_storage_once(fake):
    def run():
        layer = nn.Linear(10, 20)
        image = torch.empty(3, 10)
        with KeptForBackward([*layer.parameters(), image]) as kept:
            y = layer(image)  # keeps the image and the weight
            z = y.exp()  # keeps its result: 240 bytes
            z * z.view(-1).view(3, 20)  # keeps twice what is kept already
            y.detach().exp()  # keeps nothing
        return kept.total

    assert run_on(fake, run) == 3 * 20 * 4


def test_checkpointing_keeps_the_inputs_alone():
    def run(with_cp):
        layers = [nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(3)]
        x = torch.zeros(2, 8, requires_grad=True)
        with KeptForBackward([x, *(p for layer in layers for p in layer.parameters())]) as kept:
            for layer in layers:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if with_cp else layer(x)
        return kept.total

    # Inputs of the second and third; without checkpoints also 64 numbers before and after each GELU.
    assert run(True) == 2 * (2 * 8 * 4)
    assert run(False) == 2 * (2 * 8 * 4) + 3 * 2 * (2 * 64 * 4)

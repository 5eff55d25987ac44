"""What detrex' DINO is given; runs without detrex."""

import math

import pytest
import torch

from backbones.integrations.detrex import MapList, ReferenceHead, get_dino_lr_factor
from tests.testing import assert_close


def encode(boxes, channels):
    """Sines and cosines by turns of 2π·x / 10000^(2i / channels), for y, x, w, h."""
    rates = 10000 ** (torch.arange(channels).div(2, rounding_mode="floor") * 2 / channels)
    angles = 2 * math.pi * boxes[..., [1, 0, 2, 3], None] / rates
    return torch.where(torch.arange(channels) % 2 == 0, angles.sin(), angles.cos()).flatten(-2)


@pytest.mark.parametrize("dims", [64, 256])
def test_reference_head_encodes_with_mmdets_frequencies(dims):
    boxes = torch.rand(2, 7, 4)
    boxes[0, 0] = torch.tensor([0.0, 1.0, 1.0, 0.5])  # the borders, whose sine and cosine agree at the first frequency
    head = ReferenceHead(dims)
    first, second = head.layers
    truth = second(first(encode(boxes, dims)).relu())
    assert_close(head(encode(boxes, 128)), truth, tolerance=1e-4)


def test_map_list_and_rates():
    maps = {"p2": torch.zeros(1), "p3": torch.ones(1)}
    assert MapList(["p3", "p2"])(maps) == [maps["p3"], maps["p2"]]
    names = {
        "backbone.net.blocks.0.mixer.D": 0.1,
        "backbone.simfp_2.0.weight": 1.0,
        "transformer.encoder.layers.0.attentions.0.sampling_offsets.weight": 0.1,
        "transformer.decoder.ref_point_head.layers.0.weight": 1.0,
    }
    assert {name: get_dino_lr_factor(name) for name in names} == names

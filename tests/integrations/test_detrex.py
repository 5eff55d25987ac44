"""What detrex' DINO is given; runs without detrex."""

import torch

from backbones.integrations.detrex import MapList, get_dino_lr_factor


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

"""Names under mmdet and Detectron2, written out, and nothing lost on the way there and back."""

import json

import pytest
import torch

from backbones import AdaptedBackbone, DefocusMamba, InteractionAdapter, SimpleFPN, TapPyramid
from backbones.checkpoints import to_detectron2, to_mmdet

ARCH = dict(embed_dims=32, inner_dims=64, depth=4, dt_rank=4, norm_group_dims=32)


def numbered(names):
    """A state dict in which each tensor tells where it came from."""
    return {name: torch.tensor(float(i)) for i, name in enumerate(names)}


def sources(converted, weights):
    """New name to old name, by the numbers."""
    old = {value.item(): name for name, value in weights.items() if value.ndim == 0}
    return {name: old[value.item()] for name, value in converted.items() if value.ndim == 0}


def backbone_names(prefix):
    names = ["cls_token", "blocks.0.norm.weight", "blocks.0.mixer.A_log", "norm.bias", "patch_embed.projection.bias"]
    return [prefix + name for name in names]


EMBEDDING = torch.zeros(32, 3, 16, 16)


def test_the_simple_pyramid_in_detectron2s_names():
    weights = numbered(
        [
            *backbone_names("backbone."),
            *(f"neck.fpn1.{layer}.weight" for layer in (0, 1, 3)),
            "neck.fpn2.0.bias",
            *(
                f"neck.{convs}.{i}.{part}.weight"
                for convs in ("lateral_convs", "fpn_convs")
                for i in range(4)
                for part in ("conv", "norm_layer")
            ),
            "bbox_head.fc_reg.weight",
        ]
    )
    weights["backbone.patch_embed.projection.weight"] = EMBEDDING
    converted, left = to_detectron2(weights)
    found = sources(converted, weights)
    assert left == ["bbox_head.fc_reg.weight"]
    # Detectron2 numbers by the logarithm of the stride; two convolutions end each scale.
    expected = {
        "backbone.net.blocks.0.mixer.A_log": "backbone.blocks.0.mixer.A_log",
        "backbone.simfp_2.0.weight": "neck.fpn1.0.weight",
        "backbone.simfp_2.1.weight": "neck.fpn1.1.weight",
        "backbone.simfp_2.3.weight": "neck.fpn1.3.weight",
        "backbone.simfp_2.4.weight": "neck.lateral_convs.0.conv.weight",
        "backbone.simfp_2.4.norm.weight": "neck.lateral_convs.0.norm_layer.weight",
        "backbone.simfp_2.5.weight": "neck.fpn_convs.0.conv.weight",
        "backbone.simfp_2.5.norm.weight": "neck.fpn_convs.0.norm_layer.weight",
        "backbone.simfp_3.0.bias": "neck.fpn2.0.bias",
        "backbone.simfp_3.1.weight": "neck.lateral_convs.1.conv.weight",
        "backbone.simfp_3.2.weight": "neck.fpn_convs.1.conv.weight",
        "backbone.simfp_4.0.weight": "neck.lateral_convs.2.conv.weight",
        "backbone.simfp_4.1.norm.weight": "neck.fpn_convs.2.norm_layer.weight",
        "backbone.simfp_5.1.weight": "neck.lateral_convs.3.conv.weight",
        "backbone.simfp_5.2.weight": "neck.fpn_convs.3.conv.weight",
    }
    assert {name: found[name] for name in expected} == expected
    back, left = to_mmdet(converted)
    assert not left and sources(back, weights) == {
        name: name for name in weights if "bbox" not in name and weights[name].ndim == 0
    }
    # The same pyramid in our own module.
    found = sources(to_detectron2(weights, adapted=True)[0], weights)
    assert found["backbone.adapter.lateral_convs.0.norm_layer.weight"] == "neck.lateral_convs.0.norm_layer.weight"
    assert not any("simfp" in name for name in found)


def test_dino_in_detrex_names():
    table = {
        "level_embed": "transformer.level_embeds",
        "query_embedding.weight": "transformer.tgt_embed.weight",
        "memory_trans_fc.bias": "transformer.enc_output.bias",
        "dn_query_generator.label_embedding.weight": "label_enc.weight",
        "encoder.layers.3.self_attn.value_proj.weight": "transformer.encoder.layers.3.attentions.0.value_proj.weight",
        "decoder.layers.2.self_attn.attn.in_proj_bias": "transformer.decoder.layers.2.attentions.0.attn.in_proj_bias",
        "decoder.layers.2.cross_attn.output_proj.bias": "transformer.decoder.layers.2.attentions.1.output_proj.bias",
        "decoder.layers.5.norms.2.weight": "transformer.decoder.layers.5.norms.2.weight",
        "decoder.ref_point_head.layers.0.weight": "transformer.decoder.ref_point_head.layers.0.weight",
        "bbox_head.cls_branches.6.weight": "class_embed.6.weight",
        "bbox_head.reg_branches.1.0.weight": "bbox_embed.1.layers.0.weight",
        "bbox_head.reg_branches.1.2.bias": "bbox_embed.1.layers.1.bias",
        "bbox_head.reg_branches.1.4.weight": "bbox_embed.1.layers.2.weight",
    }
    weights = numbered([*backbone_names("backbone."), *table])
    weights["backbone.patch_embed.projection.weight"] = EMBEDDING
    converted, left = to_detectron2(weights)
    found = sources(converted, weights)
    assert not left and {old: found[new] for old, new in table.items()} == {old: old for old in table}
    # detrex registers its heads once more in the decoder.
    assert found["transformer.decoder.bbox_embed.1.layers.1.bias"] == "bbox_head.reg_branches.1.2.bias"
    assert to_mmdet(converted)[0].keys() == weights.keys()


def test_a_released_detector_has_detrex_names_and_shapes():
    """All of them, read once from detrex' own model."""
    with open("tests/data/detector_keys_base.json") as file:
        released = {name: torch.empty(shape, device="meta") for name, shape in json.load(file).items()}
    with open("tests/data/detrex_keys_base.json") as file:
        expected = {name: tuple(shape) for name, shape in json.load(file).items()}
    converted, left = to_detectron2(released)
    assert left == [] and {name: tuple(value.shape) for name, value in converted.items()} == expected
    back, left = to_mmdet(converted)
    assert left == [] and all(back[name] is value for name, value in released.items())


@pytest.mark.parametrize(
    "patch_size, start, count, stages",
    [(16, 0, 4, (2, 3, 4, 5)), (8, 0, 4, (1, 2, 3, 4)), (8, 1, 3, (2, 3, 4)), (16, 2, 2, (4, 5)), (4, 0, 3, (0, 1, 2))],
)
def test_scales_are_numbered_by_the_logarithm_of_their_strides(patch_size, start, count, stages):
    backbone = DefocusMamba(ARCH, patch_size=patch_size).state_dict()
    weights = {f"backbone.{k}": v for k, v in backbone.items()}
    weights |= {f"neck.{k}": v for k, v in SimpleFPN(32, 16, count, start).state_dict().items()}
    converted, left = to_detectron2(weights)
    assert left == []
    assert {name.split(".")[1] for name in converted if "simfp" in name} == {f"simfp_{stage}" for stage in stages}
    for i, stage in enumerate(stages):
        last = max(name for name in converted if name.startswith(f"backbone.simfp_{stage}."))
        assert converted[last] is weights[f"neck.fpn_convs.{i}.{'norm_layer' if '.norm.' in last else 'conv'}.weight"]


@pytest.mark.parametrize(
    "adapter, settings, mmdet",
    [
        (SimpleFPN, dict(out_channels=16), ("backbone.", "neck.")),
        (TapPyramid, dict(out_channels=16), ("backbone.net.", "backbone.adapter.")),
        (InteractionAdapter, dict(num_heads=4), ("backbone.net.", "backbone.adapter.")),
    ],
)
def test_an_adapted_backbone_of_detectron2_and_back(adapter, settings, mmdet):
    """Parameters of our Detectron2 `AdaptedBackbone` are called as those of this one."""
    net = DefocusMamba(ARCH, out_indices=(0, 1, 2, 3))
    model = AdaptedBackbone(net, adapter.fit(net, **settings))
    weights = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    there, left = to_mmdet(weights | {"roi_heads.x": torch.zeros(1)})
    assert left == ["roi_heads.x"]
    parts = [(mmdet[0], net), (mmdet[1], model.adapter)]
    assert there.keys() == {prefix + name for prefix, part in parts for name in part.state_dict()}
    back, left = to_detectron2(there, adapted=True)
    assert not left and back.keys() == weights.keys() and all(back[name] is weights[name] for name in weights)


def test_a_tap_pyramid_that_is_a_neck():
    net = DefocusMamba(ARCH, out_indices=(0, 1, 2, 3))
    weights = {f"backbone.{k}": v for k, v in net.state_dict().items()}
    neck = TapPyramid(32).state_dict()
    converted, left = to_detectron2(weights | {f"neck.{k}": v for k, v in neck.items()})
    assert not left and {f"backbone.adapter.{name}" for name in neck} < converted.keys()


def test_another_neck_is_left_out():
    weights = {f"backbone.{k}": v for k, v in DefocusMamba(ARCH).state_dict().items()}
    _, left = to_detectron2(weights | {"neck.convs.0.conv.weight": torch.zeros(1)})
    assert left == ["neck.convs.0.conv.weight"]


@pytest.mark.parametrize("part", ["simfp_2.0.weight", "adapter.lateral_convs.0.conv.weight"])
def test_what_has_detectron2s_names_keeps_them(part):
    """Heads too: a moving average of detrex' trainer goes back into its own model."""
    parts = [*backbone_names("backbone.net."), f"backbone.{part}", "transformer.enc_output.bias", "class_embed.0.bias"]
    weights = numbered([*parts, "roi_heads.box_head.fc1.weight"])
    weights["backbone.net.patch_embed.projection.weight"] = EMBEDDING
    converted, left = to_detectron2(weights)
    assert not left and converted.keys() == weights.keys()
    assert all(converted[name] is weights[name] for name in weights)
    # A backbone without pyramid stands where the pyramid stood.
    converted, left = to_detectron2(weights, "backbone.")
    assert left == [f"backbone.{part}"]
    assert converted["backbone.cls_token"] is weights["backbone.net.cls_token"] and "class_embed.0.bias" in converted
    assert not any(name.startswith("backbone.net.") for name in converted)

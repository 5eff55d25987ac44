"""Names, shapes and strides that Detectron2 is told, written out; needs no Detectron2."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import backbones.integrations
from backbones import DefocusMamba as Plain
from backbones import InteractionAdapter, SimpleFPN, TapPyramid
from backbones.checkpoints import CheckpointError
from backbones.layers.norms import LayerNorm2d
from tests import detectron2_stand_in

MAMBA = dict(embed_dims=64, inner_dims=128, depth=4, dt_rank=4)
VIT = dict(embed_dims=32, depth=2, num_heads=2)
RETNET = dict(embed_dims=32, depth=2, num_heads=2, value_dims=32, ffn_dims=32)
OURS = "backbones.integrations.detectron2"


def is_ours(name: str) -> bool:
    return name == OURS or name.startswith(OURS + ".")


@pytest.fixture(scope="module")
def integration():
    """Our package on the stand-in, whether Detectron2 is installed or not; gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(sys.modules):
            if is_ours(name) or name.partition(".")[0] in ("detectron2", "omegaconf"):
                patch.delitem(sys.modules, name)
        for name, module in detectron2_stand_in.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(backbones.integrations, "detectron2", None, raising=False)
        yield importlib.import_module(OURS)
        for name in filter(is_ours, list(sys.modules)):
            del sys.modules[name]


def adapted(module, adapter, net=None, **settings):
    net = module.DefocusMamba(MAMBA, **(net or dict(out_indices=[0, 1, 2, 3])))
    return module.AdaptedBackbone(net, adapter, **settings)


# What is built; each map's channels, stride and size on an image of 75 × 107; what the image's sides are padded to.
MAPS = {
    "mamba": (lambda m: m.DefocusMamba(MAMBA), {"last_feat": (64, 16, (6, 8))}, 32),
    "vit": (lambda m: m.DefocusViT(VIT), {"last_feat": (32, 16, (6, 8))}, 32),
    "retnet": (lambda m: m.DefocusRetNet(RETNET), {"last_feat": (32, 16, (6, 8))}, 32),
    "small patches": (lambda m: m.DefocusMamba(MAMBA, patch_size=8), {"last_feat": (64, 8, (10, 14))}, 16),
    "unpadded": (lambda m: m.DefocusMamba(MAMBA, size_divisibility=0), {"last_feat": (64, 16, (5, 7))}, 0),
    "named": (lambda m: m.DefocusMamba(MAMBA, out_features=["a"]), {"a": (64, 16, (6, 8))}, 32),
    "several": (
        lambda m: m.DefocusMamba(MAMBA, out_indices=[0, 2, -1]),
        {"block0": (64, 16, (6, 8)), "block2": (64, 16, (6, 8)), "block3": (64, 16, (6, 8))},
        32,
    ),
    "pyramid": (
        lambda m: adapted(m, SimpleFPN, dict(), out_channels=24),
        {"p2": (24, 4, (24, 32)), "p3": (24, 8, (12, 16)), "p4": (24, 16, (6, 8)), "p5": (24, 32, (3, 4))},
        32,
    ),
    "five levels": (
        lambda m: adapted(m, SimpleFPN, dict(), out_channels=24, num_outs=5),
        {
            "p2": (24, 4, (32, 32)),
            "p3": (24, 8, (16, 16)),
            "p4": (24, 16, (8, 8)),
            "p5": (24, 32, (4, 4)),
            "p6": (24, 64, (2, 2)),
        },
        64,
    ),
    "two levels": (
        lambda m: adapted(m, SimpleFPN, dict(patch_size=8), out_channels=24, start_level=1, num_outs=2),
        {"p2": (24, 4, (20, 28)), "p3": (24, 8, (10, 14))},
        8,
    ),
    "taps": (
        lambda m: adapted(m, TapPyramid, out_channels=24),
        {"p2": (24, 4, (24, 32)), "p3": (24, 8, (12, 16)), "p4": (24, 16, (6, 8)), "p5": (24, 32, (3, 4))},
        32,
    ),
    "interaction": (
        lambda m: adapted(m, InteractionAdapter, num_heads=4),
        {"p2": (64, 4, (24, 32)), "p3": (64, 8, (12, 16)), "p4": (64, 16, (6, 8)), "p5": (64, 32, (3, 4))},
        32,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(integration, name):
    build, expected, divisor = MAPS[name]
    backbone = build(integration).eval()
    shapes = {name: (shape.channels, shape.stride) for name, shape in backbone.output_shape().items()}
    assert shapes == {name: (channels, stride) for name, (channels, stride, _) in expected.items()}
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 75, 107))
    assert {name: (value.shape[1], tuple(value.shape[2:])) for name, value in maps.items()} == {
        name: (channels, size) for name, (channels, _, size) in expected.items()
    }
    assert backbone.size_divisibility == divisor
    assert backbone.padding_constraints == {"size_divisibility": divisor, "square_size": 0}


def test_maps_are_those_of_the_plain_backbone_on_the_padded_image(integration):
    ours = integration.DefocusMamba(MAMBA, out_indices=[1, 3], section_size=32, square_pad=160).eval()
    plain = Plain(MAMBA, out_indices=[1, 3], section_size=32).eval()
    plain.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 75, 107)
    padded = torch.zeros(1, 3, 96, 128)
    padded[..., :75, :107] = image
    for actual, truth in zip(ours(image).values(), plain(padded), strict=True):
        assert torch.equal(actual, truth)
    assert ours.padding_constraints == {"size_divisibility": 32, "square_size": 160}


def test_parameters_keep_their_names(integration):
    names = adapted(integration, SimpleFPN, dict(), out_channels=24).state_dict().keys()
    expected = {
        "net.cls_token",
        "net.patch_embed.projection.weight",
        "net.blocks.3.mixer.A_log",
        "net.norm.bias",
        "adapter.fpn1.0.weight",
        "adapter.lateral_convs.0.conv.weight",
        "adapter.fpn_convs.3.norm_layer.bias",
    }
    assert expected < names and all(name.startswith(("net.", "adapter.")) for name in names)
    assert integration.DefocusMamba(MAMBA).state_dict().keys() == Plain(MAMBA).state_dict().keys()


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (dict(out_features=["a", "b"]), ValueError, r"must name 1 maps, of strides \(16,\)"),
        (dict(out_indices=[0, 1], out_features=["a", "a"]), ValueError, "must name 2 maps"),
        (dict(size_divisibility=-1), ValueError, "size_divisibility must be 0"),
        (dict(square_pad=-1), ValueError, "square_pad must be 0"),
        (dict(drop_pth_rate=0.1), TypeError, "drop_pth_rate"),
    ],
)
def test_wrong_settings_are_refused(integration, settings, error, message):
    with pytest.raises(error, match=message):
        integration.DefocusMamba(MAMBA, **settings)


def config(integration, **options):
    made = detectron2_stand_in.CfgNode(dict(MODEL=detectron2_stand_in.CfgNode()))
    integration.add_defocus_config(made)
    made.MODEL.DEFOCUS.OPTIONS = options
    return made


def test_builders_for_yaml(integration):
    node = integration.yaml_config.default_config.MODEL.DEFOCUS
    assert node == {
        "FAMILY": "DefocusMamba",
        "OPTIONS": {},
        "PYRAMID": {"OUT_CHANNELS": 256, "SCALE_FACTORS": [4.0, 2.0, 1.0, 0.5], "TOP_BLOCK": True, "SQUARE_PAD": 0},
    }
    # Arguments of the backbone are keys there that Detectron2 cannot know.
    assert node.OPTIONS.new_allowed and not node.PYRAMID.new_allowed
    assert set(integration.yaml_config.BACKBONE_REGISTRY) == {
        "build_defocus_backbone",
        "build_defocus_pyramid_backbone",
    }
    colours = integration.yaml_config.ShapeSpec(channels=3)
    net = integration.build_defocus_backbone(config(integration, arch=MAMBA), colours)
    assert isinstance(net, integration.DefocusMamba) and net.patch_embed.conv.in_channels == 3
    for options, factors, top in (
        (dict(arch=MAMBA), [4.0, 2.0, 1.0, 0.5], "p5"),
        (dict(arch=MAMBA, patch_size=8, out_indices=[1, 3]), [2.0, 1.0, 0.5], "p4"),
    ):
        wanted = config(integration, **options)
        wanted.MODEL.DEFOCUS.PYRAMID.SCALE_FACTORS = factors
        settings = integration.build_defocus_pyramid_backbone(wanted, colours).settings
        last = "block3" if "out_indices" in options else "last_feat"
        net, block = settings.pop("net"), settings.pop("top_block")
        assert isinstance(net, integration.DefocusMamba) and block.in_feature == top
        assert settings == dict(
            in_feature=last, out_channels=256, scale_factors=factors, norm=LayerNorm2d, square_pad=0
        )
    wanted.MODEL.DEFOCUS.FAMILY = "ResNet"
    with pytest.raises(ValueError, match="must be one of DefocusMamba, DefocusViT, DefocusRetNet"):
        integration.build_defocus_backbone(wanted, colours)


def test_what_does_not_decay(integration):
    model = nn.ModuleDict(
        {"backbone": adapted(integration, SimpleFPN, net=dict(out_indices=[0])), "head": nn.Linear(2, 2)}
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = integration.get_optimizer_params(model, base_lr=1.0, weight_decay=0.1)
    found = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    net = "backbone.net."
    assert {name for name, decay in found.items() if decay == 0 and name.startswith(net)} == {
        net + "cls_token",
        net + "patch_embed.projection.bias",
        net + "blocks.0.norm.weight",
        net + "blocks.0.mixer.A_log",
        net + "blocks.0.mixer.D",
        net + "blocks.0.mixer.freq",
        net + "blocks.0.mixer.conv1d.bias",
        net + "blocks.0.mixer.dt_proj.bias",
    }
    assert found["head.bias"] == found[net + "blocks.0.mixer.in_proj.weight"] == 0.1
    # Blocks after the last map do not train.
    assert not any(name.startswith(f"{net}blocks.1") for name in found)


def test_layer_wise_decay_knows_the_class_token(integration):
    rates = {
        "backbone.net.cls_token": 0.125,
        "backbone.net.patch_embed.projection.weight": 0.125,
        "backbone.net.blocks.0.mixer.A_log": 0.25,
        "backbone.net.blocks.1.norm.weight": 0.5,
        "backbone.net.norm.weight": 1.0,
        "backbone.simfp_2.0.weight": 1.0,
        "roi_heads.cls_token": 1.0,
    }
    assert {name: integration.get_lr_decay_rate(name, 0.5, 2) for name in rates} == rates


@pytest.mark.parametrize("place", ["", "#backbone.", "#backbone.bottom_up.net."])
def test_a_checkpoint_of_mmdet_in_detectron2s_names(integration, place, tmp_path):
    weights = Plain(MAMBA).state_dict()
    detector = {f"backbone.{k}": v for k, v in weights.items()}
    detector |= {f"neck.{k}": v for k, v in SimpleFPN(64, 32).state_dict().items()}
    torch.save({"state_dict": {k: v * 0 for k, v in detector.items()}, "model_ema": detector}, tmp_path / "x.pth")
    path = integration.checkpoints.PathManager.get_local_path(f"defocus:{tmp_path}/x.pth{place}")
    found = detectron2_stand_in.state_dict_of(path)
    prefix = place.removeprefix("#") or "backbone.net."
    (note,) = {name for name in found if name.endswith("defocus_source")}
    assert json.loads(bytes(found.pop(note).tolist()))["file"] == f"{tmp_path}/x.pth"
    # The pyramid goes along where there is a place for it.
    outer = prefix.removesuffix("net.") if prefix.endswith("net.") else None
    pyramid = {
        f"{outer}simfp_2.0.weight": "neck.fpn1.0.weight",
        f"{outer}simfp_2.4.norm.bias": "neck.lateral_convs.0.norm_layer.bias",
        f"{outer}simfp_4.1.weight": "neck.fpn_convs.2.conv.weight",
        f"{outer}simfp_5.1.weight": "neck.lateral_convs.3.conv.weight",
    }
    for name, source in {**{prefix + k: f"backbone.{k}" for k in weights}, **(pyramid if outer else {})}.items():
        assert torch.equal(found[name], detector[source]), name
    assert len(found) == (len(detector) if outer else len(weights))


def test_a_checkpoint_that_does_not_fit_is_one_error(integration, tmp_path):
    broken = {name: value * torch.nan for name, value in Plain(MAMBA).state_dict().items()}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"broken\.pth: .* weights are NaN or infinite"):
        integration.checkpoints.PathManager.get_local_path(f"defocus:{tmp_path}/broken.pth")
    torch.save(Plain(MAMBA | dict(depth=3)).state_dict(), tmp_path / "x.pth")
    path = integration.checkpoints.PathManager.get_local_path(f"defocus:{tmp_path}/x.pth#backbone.")
    model = nn.ModuleDict({"backbone": integration.DefocusMamba(MAMBA)})
    with pytest.raises(CheckpointError, match=r"x\.pth does not fit DefocusMamba: it lacks blocks\.3\."):
        model.load_state_dict(detectron2_stand_in.state_dict_of(path), strict=False)
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        integration.checkpoints.PathManager.get_local_path(f"defocus:{tmp_path}/absent.pth")


def test_a_coco_file_is_registered_under_one_name(integration, tmp_path):
    file = tmp_path / "train.json"
    file.write_text('{"categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}]}')
    assert integration.register_coco_json(file, tmp_path, "mine") == "mine"
    assert integration.register_coco_json(file, tmp_path, "mine") == "mine"
    assert integration.data.MetadataCatalog["mine"] == dict(json_file=str(file), image_root=str(tmp_path))
    assert integration.count_categories(file) == 2
    with pytest.raises(FileNotFoundError, match=r"images .*absent do not exist"):
        integration.register_coco_json(file, tmp_path / "absent")
    with pytest.raises(ValueError, match="name of another data set"):
        integration.register_coco_json(file, "/", "mine")


@pytest.mark.parametrize(
    "path",
    [
        *sorted(Path("detectron2_projects").glob("*/configs/**/*.py")),
        Path("backbones/integrations/detectron2/train.py"),
    ],
    ids=str,
)
def test_what_only_detectron2_runs_is_python(path):
    compile(path.read_text(), path, "exec")

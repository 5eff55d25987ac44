"""The backbones as Detectron2's own: its contract, its pyramid, its optimiser's groups, its checkpoints."""

import copy
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.structures import ImageList

import backbones
from backbones import SimpleFPN, adapters
from backbones.checkpoints import CheckpointError, to_detectron2, to_mmdet
from backbones.integrations import detectron2 as integration
from tests.integrations.detectron2_networks import ARCHS, FAMILIES, lazy_pyramid
from tests.testing import assert_close


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 96), (75, 107), (1, 5)])
@pytest.mark.parametrize("section_size", [None, 32])
def test_maps_are_bit_equal_to_mmdets(family, size, section_size):
    registry = pytest.importorskip("mmdet.registry", reason="mmdet is not installed").MODELS
    settings = dict(arch=ARCHS[family], section_size=section_size, rope_scale=3.0, delta_scale=2.0, out_indices=[0, 1])
    ours = instantiate(L(getattr(integration, family))(size_divisibility=0, **settings)).eval()
    theirs = registry.build(dict(type=family, **settings)).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, *size)
    maps = ours(image)
    assert list(maps) == ["block0", "block1"]
    for actual, truth in zip(maps.values(), theirs(image), strict=True):
        assert torch.equal(actual, truth)


@pytest.mark.parametrize("size", [(64, 96), (75, 107), (31, 33)])
def test_contract_holds_for_every_output(size):
    """What `output_shape` says is what `forward` gives, below Detectron2's pyramid too, which asks for no padding."""
    net = integration.DefocusMamba(ARCHS["DefocusMamba"])
    pyramid = instantiate(lazy_pyramid())
    for backbone in (net, pyramid):
        shapes = backbone.output_shape()
        maps = backbone(torch.randn(1, 3, *size))
        assert list(maps) == list(shapes)
        padded = [-(-side // 32) * 32 for side in size]
        for name, value in maps.items():
            expected = (shapes[name].channels, *(side // shapes[name].stride for side in padded))
            assert tuple(value.shape[1:]) == expected, name
            # Every pixel of the image lies below the map.
            assert all(cells * shapes[name].stride >= side for cells, side in zip(value.shape[2:], size)), name
    assert list(pyramid.output_shape()) == ["p2", "p3", "p4", "p5"]


def test_padding_is_what_detectron2_does_where_it_asks():
    net = integration.DefocusMamba(ARCHS["DefocusMamba"], section_size=64).eval()
    image = torch.randn(3, 75, 107)
    batch = ImageList.from_tensors([image], net.size_divisibility, padding_constraints=net.padding_constraints)
    assert batch.tensor.shape == (1, 3, 96, 128)
    assert torch.equal(net(batch.tensor)["last_feat"], net(image[None])["last_feat"])
    square = integration.DefocusMamba(ARCHS["DefocusMamba"], square_pad=160)
    batch = ImageList.from_tensors([image], square.size_divisibility, padding_constraints=square.padding_constraints)
    assert batch.tensor.shape == (1, 3, 160, 160)


@pytest.mark.parametrize(
    "adapter, settings, divisor",
    [
        (adapters.SimpleFPN, dict(out_channels=32, num_outs=3, start_level=1), 32),
        (adapters.InteractionAdapter, dict(out_channels=32, num_heads=4), 32),
        (adapters.TapPyramid, dict(out_channels=32), 32),
    ],
)
def test_our_adapters(adapter, settings, divisor):
    """The same maps as the core's, by names of strides, and Detectron2's heads find what they are told."""
    options = dict(arch=ARCHS["DefocusMamba"] | dict(depth=4), out_indices=[0, 1, 2, 3])
    net = L(integration.DefocusMamba)(**options)
    ours = instantiate(L(integration.AdaptedBackbone)(net=net, adapter=adapter, **settings)).eval()
    core = backbones.DefocusMamba(**options)
    truth = adapters.AdaptedBackbone(core, adapter.fit(core, **settings)).eval()
    truth.load_state_dict(ours.state_dict())
    renamed, left = to_mmdet({f"backbone.{k}": v for k, v in ours.state_dict().items()})
    # A neck under mmdet, or the same module there.
    parts = ("backbone.", "neck.") if adapter is adapters.SimpleFPN else ("backbone.net.", "backbone.adapter.")
    modules = zip(parts, (truth.net, truth.adapter), strict=True)
    assert left == [] and renamed.keys() == {prefix + k for prefix, module in modules for k in module.state_dict()}
    image = torch.randn(1, 3, 75, 107)
    maps = ours(image)
    expected = truth(nn.functional.pad(image, (0, -107 % divisor, 0, -75 % divisor)))
    assert all(torch.equal(a, b) for a, b in zip(maps.values(), expected, strict=True))
    for name, value in maps.items():
        shape = ours.output_shape()[name]
        assert name == f"p{shape.stride.bit_length() - 1}" and shape.channels == value.shape[1] == 32
        assert value.shape[2:] == (96 // shape.stride, 128 // shape.stride)
    assert ours.size_divisibility == ours.padding_constraints["size_divisibility"] == divisor
    with pytest.raises(TypeError, match="out_chanels"):
        integration.AdaptedBackbone(instantiate(net), adapter, out_chanels=3)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="out_features must name 1 maps"):
        integration.DefocusMamba(ARCHS["DefocusMamba"], out_features=["a", "b"])
    with pytest.raises(TypeError, match="drop_pth_rate"):
        integration.DefocusMamba(ARCHS["DefocusMamba"], drop_pth_rate=0.1)
    with pytest.raises(ValueError, match="size_divisibility must be 0"):
        integration.DefocusMamba(ARCHS["DefocusMamba"], size_divisibility=-1)


@pytest.mark.parametrize("patch_size, start", [(16, 0), (8, 0), (16, 1), (16, 2)])
def test_pyramids_agree_after_conversion_and_it_round_trips(patch_size, start):
    count = 4 - start
    mine = nn.ModuleDict(
        {
            "backbone": backbones.DefocusMamba(ARCHS["DefocusMamba"], patch_size=patch_size),
            "neck": SimpleFPN(64, 32, count, start),
        }
    ).eval()
    for parameter in mine.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
    config = lazy_pyramid(patch_size=patch_size)
    config.scale_factors = (4.0, 2.0, 1.0, 0.5)[start:]
    theirs = nn.ModuleDict({"backbone": instantiate(config)}).eval()
    weights = mine.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    converted, left = to_detectron2(weights)
    assert left == []
    theirs.load_state_dict(converted)  # strict: nothing missing, nothing besides
    image = torch.randn(1, 3, 96, 64)
    expected = mine["neck"](mine["backbone"](image))
    actual = theirs["backbone"](image)
    for (name, value), truth in zip(actual.items(), expected, strict=True):
        assert_close(value, truth, name, 1e-5)
    back, left = to_mmdet(theirs.state_dict())
    assert left == [] and sorted(back) == sorted(weights)
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_conversion_says_what_it_leaves_and_refuses_what_it_cannot():
    detector = {f"backbone.{k}": v for k, v in backbones.DefocusMamba(ARCHS["DefocusMamba"]).state_dict().items()}
    head = {"rpn_head.rpn_conv.weight": torch.zeros(1), "neck.lateral_convs.0.conv.weight": torch.zeros(1)}
    converted, left = to_detectron2({**detector, **head})
    # A neck without this pyramid's norms is another's.
    assert left == list(head) and len(converted) == len(detector)
    with pytest.raises(CheckpointError, match="no De-focus backbone"):
        to_detectron2(head)
    with pytest.raises(CheckpointError, match="no De-focus backbone"):
        to_mmdet(head)
    pyramid = {f"backbone.{k}": v for k, v in instantiate(lazy_pyramid()).state_dict().items()}
    with pytest.raises(CheckpointError, match="mmdet's names already"):
        to_mmdet(to_mmdet(pyramid)[0])
    # Heads of Detectron2 do not hide the backbone, and are named.
    back, left = to_mmdet({**pyramid, "roi_heads.box_head.fc1.weight": torch.zeros(1)})
    assert left == ["roi_heads.box_head.fc1.weight"] and len(back) == len(pyramid)
    lonely = {f"neck.{k}": v for k, v in SimpleFPN(64, 32, 1, 2).state_dict().items()}
    with pytest.raises(CheckpointError, match="do not tell which"):
        to_detectron2({**detector, **lonely})


def optimizer_settings(model, **settings):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = integration.get_optimizer_params(model, **settings)
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert len(found) == len(names) == sum(len(group["params"]) for group in groups)
    return found


def test_layer_decay_and_weight_decay_reach_the_parameters():
    model = nn.ModuleDict({"backbone": instantiate(lazy_pyramid()), "head": nn.Linear(2, 2)})
    decay = partial(integration.get_lr_decay_rate, lr_decay_rate=0.5, num_layers=2)
    found = optimizer_settings(model, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, lr_factor_func=decay)
    net = model["backbone"].net
    for name, group in found.items():
        rate = 1.0
        if name.startswith("backbone.net."):
            short = name.removeprefix("backbone.net.")
            rate = 0.5 ** (3 - net.get_layer_id(short))
            assert group["weight_decay"] == (0.0 if short in net.no_weight_decay() else 0.1), name
            if short != "cls_token":
                assert rate == get_vit_lr_decay_rate(name, 0.5, 2)
        assert group["lr"] == rate, name
    assert found["backbone.net.blocks.0.mixer.A_log"]["weight_decay"] == 0.0
    assert found["backbone.net.blocks.0.norm.weight"]["weight_decay"] == 0.0
    assert found["backbone.net.blocks.0.mixer.in_proj.weight"] == found["backbone.net.blocks.0.mixer.out_proj.weight"]
    assert found["head.weight"]["weight_decay"] == 0.1


@pytest.mark.parametrize("kind", ["classifier", "detector", "backbone"])
@pytest.mark.parametrize("place", ["pyramid", "alone"])
def test_released_files_load_as_init_checkpoint(kind, place, tmp_path, caplog):
    source = backbones.DefocusMamba(ARCHS["DefocusMamba"])
    neck = SimpleFPN(64, 32, 4)
    weights = source.state_dict()
    if kind == "classifier":
        released = {k.replace("projection", "proj"): v for k, v in weights.items()}
        content = {
            "model": {k: v * 0 for k, v in released.items()},
            "model_ema": {**released, "head.bias": neck.fpn2[0].bias},
        }
    elif kind == "detector":
        content = {
            "state_dict": {
                **{f"backbone.{k}": v for k, v in weights.items()},
                **{f"neck.{k}": v for k, v in neck.state_dict().items()},
            },
            "meta": {"epoch": 12},
        }
    else:
        content = weights
    torch.save(content, tmp_path / "released.pth")
    backbone = instantiate(lazy_pyramid() if place == "pyramid" else lazy_pyramid().net)
    model = nn.ModuleDict({"backbone": backbone})
    where = "" if place == "pyramid" else "#backbone."
    with caplog.at_level("INFO", "detectron2"):
        DetectionCheckpointer(model, tmp_path).load(f"defocus:{tmp_path}/released.pth{where}")
    assert ("left out 1: head.bias" in caplog.text) == (kind == "classifier")
    net = backbone.net if place == "pyramid" else backbone
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    if kind == "detector" and place == "pyramid":
        assert torch.equal(backbone.simfp_2[0].weight, neck.fpn1[0].weight)


def test_a_file_of_another_size_is_one_error(tmp_path, caplog):
    arch = ARCHS["DefocusMamba"]
    torch.save(backbones.DefocusMamba(arch | dict(depth=arch["depth"] + 1)).state_dict(), tmp_path / "deeper.pth")
    torch.save(backbones.DefocusMamba(arch | dict(dt_rank=arch["dt_rank"] + 1)).state_dict(), tmp_path / "wider.pth")
    broken = {name: value * torch.nan for name, value in backbones.DefocusMamba(arch).state_dict().items()}
    torch.save(broken, tmp_path / "broken.pth")
    model = nn.ModuleDict({"backbone": instantiate(lazy_pyramid())})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, message in {
        "deeper": rf"deeper\.pth does not fit DefocusMamba: it has besides blocks\.{arch['depth']}\.",
        "wider": r"wider\.pth does not fit .*has other shapes: blocks\.0\.mixer\.x_proj\.weight \(",
        "broken": r"broken\.pth: .* weights are NaN or infinite",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            DetectionCheckpointer(model, tmp_path).load(f"defocus:{tmp_path}/{name}.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_converted_files_are_kept_apart_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    paths = []
    for i in range(2):
        weights = backbones.DefocusMamba(ARCHS["DefocusMamba"]).state_dict()
        weights["cls_token"] = torch.full_like(weights["cls_token"], i)
        torch.save(weights, tmp_path / f"{i}.pth")
        paths.append(integration.checkpoints.PathManager.get_local_path(f"defocus:{tmp_path}/{i}.pth"))
    for _ in range(2):
        for i, path in enumerate(paths):
            assert (torch.load(path)["model"]["backbone.net.cls_token"] == i).all()
    # Not even a process that is killed leaves a file.
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_names_copies_and_pickles(family):
    net = getattr(integration, family)(arch=ARCHS[family])
    model = integration.AdaptedBackbone(net, SimpleFPN, out_channels=16)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    image = torch.randn(1, 3, 64, 64)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(copied(image).values(), model(image).values(), strict=True))


def test_missing_init_checkpoint_is_one_clear_error():
    model = nn.ModuleDict({"backbone": instantiate(lazy_pyramid())})
    with pytest.raises(CheckpointError, match=r"/nowhere/cls\.pth does not exist"):
        DetectionCheckpointer(model).load("defocus:/nowhere/cls.pth")


def test_coco_json_is_registered_once(tmp_path):
    from detectron2.data import MetadataCatalog

    file = tmp_path / "train.json"
    file.write_text('{"images": [], "annotations": [], "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}]}')
    name = integration.register_coco_json(file, tmp_path)
    assert integration.register_coco_json(file, tmp_path) == name == str(file)
    assert MetadataCatalog.get(name).evaluator_type == "coco"
    assert integration.count_categories(file) == 2
    with pytest.raises(FileNotFoundError, match=r"images .*absent do not exist"):
        integration.register_coco_json(file, tmp_path / "absent")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="name of another data set"):
        integration.register_coco_json(file, tmp_path / "other")


@pytest.mark.parametrize("setting", [pytest.param("compile", marks=pytest.mark.slow), "bf16", "with_cp"])
def test_training_aids(setting):
    """Mixed precision, checkpointing and compilation give the gradients of the plain backbone."""
    torch.manual_seed(0)
    plain = instantiate(lazy_pyramid())
    other = instantiate(lazy_pyramid(with_cp=setting == "with_cp"))
    other.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    if setting == "compile":
        other.net.forward = torch.compile(other.net.forward)
    with torch.autocast("cpu", torch.bfloat16, enabled=setting == "bf16"):
        maps = other(image)
    truth = plain(image)
    tolerance = 5e-2 if setting == "bf16" else 1e-4
    for name in truth:
        assert_close(maps[name].float(), truth[name], name, tolerance)
    weight = {name: torch.randn_like(value) for name, value in truth.items()}
    for outputs in (maps, truth):
        sum((outputs[name].float() * weight[name]).mean() for name in weight).backward()
    for (name, actual), expected in zip(other.named_parameters(), plain.parameters()):
        if setting == "bf16":
            # By norm: rounding may change which of two tokens the pyramid's pooling takes, and one channel with it.
            error = (actual.grad - expected.grad).norm()
            assert error <= 4 * tolerance * expected.grad.norm(), f"{name}: {error} of {expected.grad.norm()}"
        else:
            assert_close(actual.grad, expected.grad, name, 4 * tolerance, floor=1e-2)


def test_importing_the_package_does_not_import_detectron2():
    code = "import sys, backbones; print('detectron2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr

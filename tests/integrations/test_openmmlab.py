"""The registered classes, built the way mmdet and mmseg build them."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed")

from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS

import backbones
from backbones.checkpoints import CheckpointError
from tests.testing import assert_close, load_fixture

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_named_in_each_framework(scope):
    registry = pytest.importorskip(f"{scope}.registry", reason=f"{scope} is not installed").MODELS
    backbone = registry.build(dict(type="DefocusMamba", arch=TINY, out_indices=[0, 1]))
    neck = registry.build(dict(type="SimpleFPN", in_channels=64, out_channels=32))
    assert isinstance(backbone, backbones.DefocusMamba) and isinstance(neck, backbones.SimpleFPN)
    outs = neck(backbone(torch.randn(1, 3, 40, 50)))
    assert [tuple(out.shape[1:]) for out in outs] == [(32, 12, 16), (32, 6, 8), (32, 3, 4), (32, 1, 2)]


@pytest.mark.parametrize(
    "adapter",
    [dict(type="SimpleFPN", out_channels=32), dict(type="TapPyramid"), dict(type="InteractionAdapter", num_heads=4)],
    ids=lambda adapter: adapter["type"],
)
def test_mmcv_reads_the_pyramid_as_it_is(adapter):
    """mmcv's RoIAlign takes every map to be contiguous and says nothing where one is not."""
    ops = pytest.importorskip("mmcv.ops", reason="mmcv is not installed, or without its operators")
    net = dict(type="DefocusMamba", arch=TINY | dict(depth=4), out_indices=(0, 1, 2, 3))
    pyramid = MODELS.build(dict(type="AdaptedBackbone", net=net, adapter=adapter))
    boxes = torch.tensor([[1, 6.0, 3.0, 70.0, 60.0], [0, 20.0, 10.0, 90.0, 40.0]])
    for features, stride in zip(pyramid(torch.randn(2, 3, 75, 107)), pyramid.out_strides, strict=True):
        # The mean of 2 × 2 bilinear samples a bin is a plain average of grid_sample's.
        out = ops.RoIAlign(4, 1 / stride, sampling_ratio=2)(features, boxes)
        for pooled, (index, x1, y1, x2, y2) in zip(out, boxes.tolist(), strict=True):
            steps = (torch.arange(8) + 0.5) / 8
            x, y = (x1 + steps * (x2 - x1)) / stride, (y1 + steps * (y2 - y1)) / stride
            h, w = features.shape[-2:]
            # Beyond the outermost centres mmcv takes the border's value.
            grid = torch.stack(torch.meshgrid(2 * x / w - 1, 2 * y / h - 1, indexing="xy"), -1)
            kind = dict(padding_mode="border", align_corners=False)
            samples = torch.nn.functional.grid_sample(features[int(index), None], grid[None], **kind)
            assert_close(pooled, torch.nn.functional.avg_pool2d(samples, 2)[0], f"stride {stride}", 1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", ["backbone_raster", "backbone_section"])
def test_registered_backbone_equals_the_released_modules(name, backend, monkeypatch):
    monkeypatch.setenv("DEFOCUS_SCAN_BACKEND", backend)
    tensors, weights, settings = load_fixture(name)
    section = int(settings["pretrain_size"]) if settings["section_rearrangement"] == "True" else None
    config = dict(type="DefocusMamba", arch=TINY, section_size=section, rope_scale=20.0, delta_scale=4.57)
    model = MODELS.build(config).eval()
    model.load_state_dict(weights)
    (out,) = model(tensors["input"])
    assert_close(out, tensors["output"], "output", 1e-5)
    (out * tensors["loss_weight"]).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name != "cls_token":
            assert_close(parameter.grad, tensors[f"grad/{parameter_name}"], parameter_name, 1e-4)


def test_init_cfg_loads_a_released_classifier(tmp_path):
    source = backbones.DefocusMamba(TINY)
    weights = {k.replace("projection", "proj"): v for k, v in source.state_dict().items()}
    torch.save({"model_ema": {**weights, "head.weight": torch.zeros(10, 64)}}, tmp_path / "cls.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "cls.pth"))
    model = MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg))
    assert not torch.equal(model.cls_token, source.cls_token)
    model.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values()))
    # As mmengine has it: a second call leaves what training has changed.
    with torch.no_grad():
        model.cls_token.zero_()
    model.init_weights()
    assert not model.cls_token.any()


@pytest.mark.parametrize("container", [None, "model"])
def test_init_cfg_names_the_weights_to_take(tmp_path, container):
    average, last = (backbones.DefocusMamba(TINY).state_dict() for _ in range(2))
    torch.save({"model": last, "model_ema": average}, tmp_path / "cls.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "cls.pth"))
    init_cfg |= {} if container is None else dict(container=container)
    model = MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg))
    model.init_weights()
    truth = average if container is None else last
    assert all(torch.equal(value, truth[name]) for name, value in model.state_dict().items())


def test_init_cfg_names_one_of_two_backbones(tmp_path):
    teacher = backbones.DefocusMamba(TINY).state_dict()
    weights = {f"teacher.backbone.{k}": v for k, v in teacher.items()}
    weights |= {f"student.backbone.{k}": torch.zeros_like(v) for k, v in teacher.items()}
    torch.save({"state_dict": weights}, tmp_path / "semi.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "semi.pth"))
    with pytest.raises(CheckpointError, match=r"are 2 under 'student.backbone.' and 'teacher.backbone.': say which by"):
        MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg)).init_weights()
    model = MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg | dict(prefix="teacher.backbone.")))
    model.init_weights()
    assert all(torch.equal(value, teacher[name]) for name, value in model.state_dict().items())


class Code:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_mmengine_runs_nothing_that_is_in_a_file(tmp_path):
    from mmengine.runner.checkpoint import load_checkpoint

    model = backbones.DefocusMamba(TINY)
    torch.save({"state_dict": model.state_dict(), "meta": Code(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    # The original packages leave it to torch, which refuses in its own words.
    with pytest.raises((CheckpointError, pickle.UnpicklingError), match="weights_only"):
        load_checkpoint(model, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    buffer = HistoryBuffer([1.0], [1])
    torch.save({"state_dict": model.state_dict(), "loss": buffer, "x": np.float64(3)}, tmp_path / "good.pth")
    assert load_checkpoint(model, str(tmp_path / "good.pth"), "cpu")["loss"].mean() == 1.0


@pytest.mark.parametrize("family", backbones.defocus.FAMILIES)
def test_registered_backbones_are_copied_and_pickled(family):
    arch = dict(DefocusMamba=TINY, DefocusViT=dict(embed_dims=32, depth=1, num_heads=2)).get(family)
    arch = arch or dict(embed_dims=32, depth=1, num_heads=2, value_dims=32, ffn_dims=32)
    net = MODELS.build(dict(type=family, arch=arch, init_cfg=dict(type="Pretrained", checkpoint="x.pth")))
    adapted = MODELS.build(
        dict(type="AdaptedBackbone", net=dict(type=family, arch=arch), adapter=dict(type="SimpleFPN"))
    )
    image = torch.randn(1, 3, 32, 32)
    for model in (net, adapted):
        assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(copied) is type(model)
            assert all(torch.equal(a, b) for a, b in zip(copied(image), model(image), strict=True))
    assert pickle.loads(pickle.dumps(net)).init_cfg == net.init_cfg


def test_missing_checkpoint_is_one_clear_error():
    init_cfg = dict(type="Pretrained", checkpoint="/nowhere/cls.pth")
    model = MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match=r"/nowhere/cls\.pth does not exist"):
        model.init_weights()


@pytest.mark.parametrize("init_cfg", [dict(type="Normal"), dict(type="Pretrained"), dict(type="Pretrained", file="x")])
def test_other_init_cfgs_are_refused(init_cfg):
    with pytest.raises(ValueError, match="init_cfg must be"):
        MODELS.build(dict(type="DefocusMamba", arch=TINY, init_cfg=init_cfg))


def test_package_imports_without_any_framework():
    code = """
import sys
from dataclasses import replace
for name in ("mmengine", "mmcv", "mmdet", "mmseg", "detectron2", "timm", "triton", "safetensors", "numpy"):
    sys.modules[name] = None
import backbones, torch
backbone = backbones.DefocusMamba(dict(embed_dims=64, inner_dims=128, depth=1))
print(backbones.SimpleFPN(64)(backbone(torch.zeros(1, 3, 32, 32)))[0].shape)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "[1, 256, 8, 8]" in result.stdout


ADAPTERS = [
    dict(type="SimpleFPN", out_channels=32),
    dict(type="TapPyramid", out_channels=32),
    dict(type="InteractionAdapter", out_channels=32, num_heads=4),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter["type"])
@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_adapters_are_one_argument_apart(scope, adapter, tmp_path):
    registry = pytest.importorskip(f"{scope}.registry", reason=f"{scope} is not installed").MODELS
    source = backbones.DefocusMamba({**TINY, "depth": 4})
    torch.save(source.state_dict(), tmp_path / "backbone.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "backbone.pth"))
    net = dict(type="DefocusMamba", arch={**TINY, "depth": 4}, out_indices=(0, 1, 2, 3), init_cfg=init_cfg)
    model = registry.build(dict(type="AdaptedBackbone", net=net, adapter=adapter))
    model.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(model.net.state_dict().values(), source.state_dict().values()))
    outs = model(torch.randn(1, 3, 64, 96))
    assert [tuple(out.shape[1:]) for out in outs] == [(32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3)]

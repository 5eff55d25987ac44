"""The registered classes, built the way mmdet and mmseg build them."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed")

from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS

import backbones
from backbones.checkpoints import CheckpointError
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
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


@pytest.mark.parametrize("loop", ["epochs", "iterations"])
def test_drop_path_rises_while_mmengine_trains(loop, tmp_path):
    from mmengine.model import BaseModel
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone = MODELS.build(dict(type="DefocusMamba", arch=TINY))
            self.seen = []

        def forward(self, images, mode="loss"):
            self.seen.append(self.backbone.blocks[-1].drop_path.drop_prob)
            return dict(loss=self.backbone(images)[0].mean())

    model = Model()
    train_cfg = dict(by_epoch=True, max_epochs=3) if loop == "epochs" else dict(by_epoch=False, max_iters=6)
    Runner(
        model,
        str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader([dict(images=torch.zeros(3, 16, 16))] * 2),
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        custom_hooks=[HOOKS.build(dict(type="DropPathScheduleHook", start=0.1, end=0.6))],
        log_level="ERROR",
        experiment_name=loop,
    ).train()
    expected = [0.1, 0.1, 0.35, 0.35, 0.6, 0.6] if loop == "epochs" else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert model.seen == pytest.approx(expected)


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


@pytest.mark.parametrize("depth", [24, 48])
@pytest.mark.parametrize("adapted", [False, True])
def test_layer_wise_decay_is_what_the_optimizer_holds(depth, adapted):
    from mmengine.optim import build_optim_wrapper

    class Segmentor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            net = dict(type="DefocusMamba", arch={**TINY, "depth": depth}, out_indices=(0, 1, 2, depth - 1))
            adapter = dict(type="InteractionAdapter", num_heads=4)
            self.backbone = MODELS.build(dict(type="AdaptedBackbone", net=net, adapter=adapter) if adapted else net)
            self.head = torch.nn.Linear(64, 5)

    optim_wrapper = dict(
        optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.05),
        constructor="LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(
            layer_decay_rate=0.9, custom_keys={"head": dict(lr_mult=10.0), "backbone": dict(lr_mult=0.5)}
        ),
    )
    model = Segmentor()
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    held = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    prefix = "backbone.net." if adapted else "backbone."
    assert len(held) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        lr, decay = held[id(parameter)]
        # mmengine's own factors multiply.
        expected = 6e-4 if name.startswith("head.") else 3e-5
        if name.startswith(prefix):
            local = name.removeprefix(prefix)
            if local.startswith(("patch_embed.", "cls_token")):
                expected *= 0.9 ** (depth + 1)
            elif local.startswith("blocks."):
                expected *= 0.9 ** (depth - int(local.split(".")[1]))
        assert lr == pytest.approx(expected, rel=1e-6), name
        constant = parameter.ndim == 1 or name.endswith(("cls_token", ".A_log", ".D", ".freq"))
        assert decay == (0.0 if constant else 0.05), name


def test_equal_parameters_share_a_group_and_train_as_in_mmengine():
    from mmengine.optim import build_optim_wrapper

    paramwise_cfg = dict(
        norm_decay_mult=0.0,
        custom_keys={"patch_embed": dict(lr_mult=0.1), "mixer.A_log": dict(lr_mult=0.5, decay_mult=0.0)},
    )
    images = torch.randn(2, 3, 32, 32)
    weights, groups = [], []
    for constructor in ("DefaultOptimWrapperConstructor", "ReducedGroupsOptimWrapperConstructor"):
        torch.manual_seed(0)
        model = MODELS.build(dict(type="DefocusMamba", arch=TINY))
        optim_wrapper = dict(
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1),
            constructor=constructor,
            paramwise_cfg=paramwise_cfg,
        )
        wrapper = build_optim_wrapper(model, optim_wrapper)
        for _ in range(3):
            wrapper.update_params(model(images)[0].square().mean())
        weights.append(dict(model.named_parameters()))
        groups.append(wrapper.optimizer.param_groups)
    settings = {(group["lr"], group["weight_decay"]) for group in groups[0]}
    assert {(group["lr"], group["weight_decay"]) for group in groups[1]} == settings
    assert len(groups[0]) == len(weights[0]) and len(groups[1]) == len(settings) < len(weights[0])
    for name, expected in weights[0].items():
        assert_close(weights[1][name], expected, name, 1e-6)


def test_layer_wise_decay_without_a_backbone_or_a_rate_is_refused():
    from mmengine.optim import build_optim_wrapper

    optim_wrapper = dict(optimizer=dict(type="SGD", lr=1.0), constructor="LayerDecayOptimWrapperConstructor")
    with pytest.raises(ValueError, match="needs paramwise_cfg"):
        build_optim_wrapper(torch.nn.Linear(2, 2), optim_wrapper)
    optim_wrapper["paramwise_cfg"] = dict(layer_decay_rate=0.5)
    with pytest.raises(ValueError, match="needs a De-focus backbone"):
        build_optim_wrapper(torch.nn.Linear(2, 2), optim_wrapper)


def test_deformable_attention_of_mmcv_runs_on_ours_during_a_run_only(tmp_path, monkeypatch):
    operators = pytest.importorskip("mmcv.ops.multi_scale_deform_attn", reason="mmcv's operators are not installed")
    from mmengine.model import BaseModel
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    shapes = torch.tensor([[4, 5], [2, 3]])

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.attention = operators.MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, dropout=0.0)
            torch.nn.init.normal_(self.attention.sampling_offsets.weight)
            torch.nn.init.normal_(self.attention.attention_weights.weight)

        def forward(self, query, value, points, mode="loss"):
            out = self.attention(
                query.transpose(0, 1),
                value=value.transpose(0, 1),
                reference_points=points,
                spatial_shapes=shapes,
                level_start_index=torch.tensor([0, 20]),
            )
            return dict(loss=out.square().mean())

    data = dict(query=torch.randn(7, 32), value=torch.randn(26, 32), points=torch.rand(7, 2, 2))
    model = Model()
    model(**{name: x[None] for name, x in data.items()})["loss"].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    original = operators.multi_scale_deformable_attn_pytorch

    def train(name):
        Runner(
            model,
            str(tmp_path),
            train_dataloader=torch.utils.data.DataLoader([data]),
            train_cfg=dict(by_epoch=False, max_iters=1),
            # Gradients stay after a step, which changes nothing.
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
            custom_hooks=[HOOKS.build(dict(type="DeformableAttentionHook"))],
            log_level="ERROR",
            experiment_name=name,
        ).train()

    monkeypatch.setattr(torch.optim.SGD, "zero_grad", lambda self, set_to_none=True: None)
    train("equal")
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], name)
    assert operators.multi_scale_deformable_attn_pytorch is original
    # A backend that cannot run here says so: it was ours that was asked.
    monkeypatch.setenv("DEFOCUS_DEFORMABLE_BACKEND", "mmcv")
    with pytest.raises(RuntimeError, match=r"mmcv.s kernel runs on CUDA|built without CUDA"):
        train("refused")


def test_mmcvs_kernel_is_stood_in_for_unless_it_is_asked_for(monkeypatch):
    operators = pytest.importorskip("mmcv.ops.multi_scale_deform_attn", reason="mmcv's operators are not installed")
    from mmengine.registry import HOOKS

    class Kernel:
        """What mmcv has where it was built with its kernel."""

        @staticmethod
        def apply(*arguments):
            return arguments

    monkeypatch.setattr(operators, "MultiScaleDeformableAttnFunction", Kernel)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value, places, weights = torch.randn(2, 26, 3, 4), torch.rand(2, 9, 3, 2, 2, 2), torch.rand(2, 9, 3, 2, 2)
    expected = operators.multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    arguments = (value, shapes, torch.tensor([0, 20]), places, weights, 64)
    hook = HOOKS.build(dict(type="DeformableAttentionHook"))
    hook.before_run(None)
    try:
        assert_close(operators.MultiScaleDeformableAttnFunction.apply(*arguments), expected)
        operation = DEFORMABLE_ATTENTION
        monkeypatch.setattr(operation, "_selected", {})
        monkeypatch.setenv(operation.environment, "mmcv")
        theirs = replace(operation.backends["mmcv"], refusal=lambda device: None)
        monkeypatch.setitem(operation.backends, "mmcv", theirs)
        assert operators.MultiScaleDeformableAttnFunction.apply(*arguments) == arguments
    finally:
        hook.after_run(None)
    assert operators.MultiScaleDeformableAttnFunction is Kernel


def test_bf16_training_without_an_accelerator():
    from mmengine.optim import build_optim_wrapper

    model = torch.nn.Linear(4, 4)
    wrapper = build_optim_wrapper(model, dict(type="Bf16OptimWrapper", optimizer=dict(type="SGD", lr=1.0)))
    x, before = torch.randn(2, 4), model.weight.detach().clone()
    with wrapper.optim_context(model):
        out = model(x)
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    # Weights and their steps stay in fp32: the gradient of the sum is the sum of the inputs, rounded to bf16.
    assert_close(before - model.weight.detach(), x.sum(0).expand(4, 4), "step", 2e-2)
    assert model.weight.dtype == torch.float32

"""What mmengine trains with: our hooks, constructors of optimisers, and mmcv's deformable attention on our kernels."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed")

from mmengine.registry import MODELS

import backbones  # noqa: F401  registers the classes
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from tests.testing import assert_close

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


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

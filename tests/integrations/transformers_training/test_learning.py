"""Rates and decay: which parameter learns how."""

import pytest
import torch
from torch import nn

from backbones.adapters import AdaptedBackbone, SimpleFPN
from backbones.defocus import DefocusMamba
from backbones.integrations.transformers_training.learning import parameter_groups, plan_learning


def build():
    net = DefocusMamba({"embed_dims": 16, "inner_dims": 64, "depth": 2, "dt_rank": 2}, patch_size=8)
    model = nn.Module()
    model.backbone = AdaptedBackbone(net, SimpleFPN.fit(net, out_channels=8, num_outs=1, start_level=2))
    model.head = nn.Linear(8, 3)
    return model


def test_rates_fall_towards_the_image_and_constants_do_not_decay():
    plan = plan_learning(build(), backbone_rate=0.5, layer_decay=0.8)
    expected = {
        "head.weight": (1.0, True),
        "head.bias": (1.0, False),
        "backbone.net.patch_embed.projection.weight": (0.5 * 0.8**3, True),
        "backbone.net.cls_token": (0.5 * 0.8**3, False),
        "backbone.net.blocks.0.mixer.in_proj.weight": (0.5 * 0.8**2, True),
        "backbone.net.blocks.0.mixer.A_log": (0.5 * 0.8**2, False),
        "backbone.net.blocks.1.mixer.D": (0.5 * 0.8, False),
        "backbone.net.norm.weight": (0.5, False),
    }
    assert {name: (pytest.approx(plan[name].rate), plan[name].decays) for name in expected} == expected
    adapter = {name: learning for name, learning in plan.items() if name.startswith("backbone.adapter.")}
    assert adapter and all(learning.rate == 0.5 for learning in adapter.values())


def test_every_parameter_is_in_one_group_whatever_wraps_the_model():
    model = build()
    plan = plan_learning(model, layer_decay=0.8)
    model.head.bias.requires_grad_(False)
    # Flattened, as FSDP hands them over: shapes tell nothing any more.
    wrapped = [
        (name.replace("net.", "net._fsdp_wrapped_module."), nn.Parameter(p.flatten(), p.requires_grad))
        for name, p in model.named_parameters()
    ]
    groups = parameter_groups(wrapped, plan, 0.1, 0.05)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for _, p in wrapped if p.requires_grad)
    parameters = dict(wrapped)
    of = {id(p): group for group in groups for p in group["params"]}
    constant = of[id(parameters["backbone.net._fsdp_wrapped_module.blocks.1.mixer.A_log"])]
    assert (constant["lr"], constant["weight_decay"]) == (pytest.approx(0.08), 0)
    weight = of[id(parameters["head.weight"])]
    assert (weight["lr"], weight["weight_decay"]) == (0.1, 0.05)
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layer_decay": 1.1}, "layer_decay must lie above 0"), ({"backbone_rate": 0.0}, "backbone_rate must be posit")],
)
def test_rates_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan_learning(build(), **settings)


def test_layer_decay_needs_a_backbone_that_has_layers():
    with pytest.raises(ValueError, match="need a De-focus backbone"):
        plan_learning(nn.Linear(2, 2), layer_decay=0.9)

"""What stands in for Detectron2 where it is not installed has the names and the behaviour that our module uses."""

import importlib

import pytest
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params

from tests import detectron2_stand_in


def test_the_stand_in_is_like_the_original():
    for module, content in detectron2_stand_in.modules().items():
        original = importlib.import_module(module)
        assert [name for name in vars(content) if not hasattr(original, name)] == []
    assert vars(detectron2_stand_in.ShapeSpec(channels=3)) == vars(ShapeSpec(channels=3))
    told = dict(_out_features=["a"], _out_feature_channels={"a": 3}, _out_feature_strides={"a": 8, "b": 4})
    shapes = []
    for base in (Backbone, detectron2_stand_in.Backbone):
        backbone = type("Named", (base,), dict(forward=None))()
        vars(backbone).update(told)
        shapes.append({name: vars(shape) for name, shape in backbone.output_shape().items()})
        assert backbone.size_divisibility == 0 and backbone.padding_constraints == {}
    assert shapes[0] == shapes[1] == {"a": dict(channels=3, height=None, width=None, stride=8)}
    for name in (
        "backbone.patch_embed.weight",
        "backbone.net.blocks.1.x",
        "backbone.net.norm.weight",
        "backbone.net.cls_token",
        "head.blocks.0.x",
    ):
        assert detectron2_stand_in.vit_lr_decay_rate(name, 0.5, 4) == get_vit_lr_decay_rate(name, 0.5, 4), name
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(False))
    found = [
        [(id(p), group["lr"], group["weight_decay"]) for group in params(model, 0.5, 0.1) for p in group["params"]]
        for params in (
            lambda model, lr, decay: get_default_optimizer_params(model, base_lr=lr, weight_decay=decay),
            detectron2_stand_in.default_optimizer_params,
        )
    ]
    assert found[0] == found[1] and len(found[0]) == 2
    for node in (CfgNode(), detectron2_stand_in.CfgNode()):
        node.A = type(node)(new_allowed=True)
        node.A.B = 3
        assert node == {"A": {"B": 3}} and node.A.B == 3

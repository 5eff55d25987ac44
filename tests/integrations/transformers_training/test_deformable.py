"""Our deformable attention in transformers' heads: the same numbers as their own."""

import copy
import inspect

import pytest
import torch

pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

import transformers
from transformers.models.d_fine import modeling_d_fine
from transformers.models.deformable_detr import modeling_deformable_detr
from transformers.models.deimv2 import modeling_deimv2
from transformers.models.mask2former import modeling_mask2former
from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

from backbones import ops
from backbones.integrations.transformers_training import deformable
from tests.integrations.transformers_training.tiny import DEFORMABLE, REAL_TIME

SHAPES = [(6, 5), (3, 4)]
TOKENS = sum(h * w for h, w in SHAPES)


def layers():
    """A layer of each head, as its model builds it, and what it takes beside queries and tokens."""
    two = {"num_feature_levels": 2}
    v2 = transformers.RTDetrV2Config(**REAL_TIME, **two, decoder_n_levels=2)
    fine = transformers.DFineConfig(**REAL_TIME, **two)
    newest = transformers.Deimv2Config(**REAL_TIME, **two)
    first = transformers.DeformableDetrConfig(**DEFORMABLE | two, backbone_config={"model_type": "resnet"})
    boxes = torch.rand(2, 7, 1, 4) * 0.5 + 0.25
    yield modeling_rt_detr_v2.RTDetrV2MultiscaleDeformableAttention(v2), boxes
    yield modeling_d_fine.DFineMultiscaleDeformableAttention(fine), boxes
    yield modeling_deimv2.Deimv2MultiscaleDeformableAttention(newest), boxes
    yield modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(first, 4, 3), boxes.expand(-1, -1, 2, -1)
    mask2former = modeling_mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 4, 2, 3)
    yield mask2former, boxes[..., :2].expand(-1, -1, 2, -1)


def attend(layer, points, queries, tokens):
    """Output, and gradients of queries, tokens and parameters."""
    queries, tokens = queries.clone().requires_grad_(), tokens.clone().requires_grad_()
    given = {"reference_points": points, "spatial_shapes_list": SHAPES, "level_start_index": torch.tensor([0, 30])}
    if "spatial_shapes" in inspect.signature(layer.forward).parameters:
        given["spatial_shapes"] = torch.tensor(SHAPES)
    output = layer(hidden_states=queries, encoder_hidden_states=tokens, **given)[0]
    inputs = [queries, tokens, *(p for p in layer.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True)]


def test_each_head_gives_the_same_outputs_and_gradients(monkeypatch):
    queries, tokens = torch.randn(2, 7, 32), torch.randn(2, TOKENS, 32)
    torch.manual_seed(1)
    own = list(layers())
    for layer, _ in own:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    expected = [attend(layer, points, queries, tokens) for layer, points in own]
    called = []
    monkeypatch.setattr(deformable, "deformable_attention", lambda *a: called.append(1) or ops.deformable_attention(*a))
    with deformable.standing_in():
        torch.manual_seed(1)
        for (layer, points), (first, _), truth in zip(layers(), own, expected, strict=True):
            layer.load_state_dict(copy.deepcopy(first.state_dict()))
            for found, wanted in zip(attend(layer, points, queries, tokens), truth, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert len(called) == 5
    attend(*own[0], queries, tokens)
    assert len(called) == 5

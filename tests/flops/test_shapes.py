"""Runs on shapes alone: what follows from shapes is known, what depends on the image is answered with its limit."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from backbones.flops import Subject, measure, shapes_only
from backbones.flops.shapes import is_fake
from backbones.ops import dispatch


def test_small_tensors_that_follow_from_shapes_have_values():
    with shapes_only() as limits:
        x = torch.empty(2, 5, 7)
        sides = torch.tensor([x.shape[1:], (3, 4)])
        areas = sides.prod(1)
        assert areas.tolist() == [35, 12] and int(areas.sum()) == 47
        starts = torch.cat((areas.new_zeros(1), areas.cumsum(0)[:-1]))
        assert starts.tolist() == [0, 35] and bool((sides[:, 0] == torch.tensor([5, 3])).all())
        assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
        assert torch._shape_as_tensor(x).tolist() == [2, 5, 7]
        cell = torch.arange(4).view(2, 2)
        cell[0] += 10
        assert cell.tolist() == [[10, 11], [2, 3]]
    assert not limits.assumed


def test_a_known_tensor_that_gets_unknown_values_is_unknown():
    with shapes_only() as limits:
        known = torch.zeros(2)
        known[:1] = torch.empty(1000)[:1]
        assert is_fake(known) and float(known[0]) == 1.0
    assert limits.assumed["aten._local_scalar_dense"] == 1


def test_upper_limits():
    with shapes_only() as limits:
        boxes, scores = torch.empty(5000, 4), torch.empty(5000)
        valid = scores > 0.5
        assert bool(valid.all()) and valid.sum().item() == 1
        assert boxes[valid].shape == (5000, 4) and boxes[valid, 0].shape == (5000,)
        assert valid.nonzero().shape == (5000, 1) and torch.where(valid)[0].shape == (5000,)
        assert scores.masked_select(valid).shape == (5000,)
        keep = torchvision.ops.nms(boxes, scores, 0.5)
        assert boxes[keep[:100]].shape == (100, 4)
        boxes[valid] = 0.0
    assert limits.assumed["torchvision.nms"] == 1


def test_a_copied_layer_is_of_the_same_mode():
    """A copy of the mode would free its references twice, and bring the interpreter down some time later."""
    with shapes_only():
        layer = nn.Linear(3, 4)
        layer.register_buffer("sides", torch.tensor([2, 3]))
        copied = copy.deepcopy(layer)
        assert copied.weight.fake_mode is layer.weight.fake_mode and copied.sides.tolist() == [2, 3]
        assert copied(torch.empty(5, 3)).shape == (5, 4) and copied.weight is not layer.weight
        assert sum(p.numel() for p in copied.parameters()) == 16


def test_nothing_outlives_it():
    limit = torch._subclasses.fake_tensor.CONSTANT_NUMEL_LIMIT
    with pytest.raises(KeyError), shapes_only():
        raise KeyError
    assert limit == torch._subclasses.fake_tensor.CONSTANT_NUMEL_LIMIT
    assert torch.ones(2).tolist() == [1.0, 1.0] and dispatch._watcher is None


def test_a_large_model_is_measured_without_its_memory():
    """A terabyte of weights and as much of activations."""

    def build():
        model = nn.Sequential(nn.Linear(500_000, 500_000, bias=False), nn.GELU())
        image = torch.empty(500_000, 500_000)
        return Subject(model, lambda: model(image), [model])

    found = measure(build)
    assert found.flops == 2 * 500_000**3 == 2 * found.macs
    assert found.parameters == 500_000**2 and found.saved_bytes == 2 * 4 * 500_000**2
    assert found.peak_bytes == 2 * 4 * 500_000**2
    assert found.by_module == {"0": found.flops}

"""The cases that benchmark and doctor try the operations on."""

import pytest
import torch

from backbones import ops
from backbones.benchmark.cases import CASES, describe
from backbones.ops.dispatch import _operations


def test_every_operation_has_a_case():
    registered = {id(operation) for operation in _operations.values()}
    assert set(CASES) == set(ops.__all__)
    assert all(id(case.operation) in registered for case in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_the_same_each_time_and_serve_every_dtype(name):
    case = CASES[name]
    for size in case.small:
        first, second = case.make(size), case.make(size)
        assert all(torch.equal(first[key], second[key]) for key in first)
        for key in case.sequences:
            assert torch.equal(first[key].bfloat16().float(), first[key])
        out = case.call(size, first, case.definition.name)
        assert out.isfinite().all() and out.abs().max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_definition_and_fallback_serve_every_device(name):
    case = CASES[name]
    assert case.definition.name == "reference" and not case.definition.automatic
    assert case.fallback.automatic and case.fallback.refusal("any") is None


@pytest.mark.parametrize("name", CASES)
def test_the_published_size_has_the_width_of_the_base_models(name):
    for size in CASES[name].published.values():
        widths = dict.fromkeys(("defocus_scan", "causal_conv1d_silu", "mamba_inner"), ("d", 1536))
        widths |= dict(deformable_attention=("width", 32))
        key, width = widths.get(name, ("h", 12))
        assert size[key] == width
    assert CASES[name].published["cuda"].get("l", 4705) == 4705


def test_points_keep_away_from_where_their_gradient_jumps():
    case = CASES["deformable_attention"]
    size = case.published["cpu"]
    for dtype in (torch.float32, torch.float64):
        locations = case.make(size)["locations"].to(dtype)
        for level, (h, w) in enumerate(size["maps"]):
            pixels = locations[:, :, :, level] * torch.tensor([w, h]) - 0.5
            assert (pixels - pixels.round()).abs().min() > 0.01
    # Most points are in the maps, and some beyond the edges.
    inside = ((locations > 0) & (locations < 1)).all(-1).double().mean()
    assert 0.8 < inside < 0.999


def test_sizes_in_words():
    assert describe(dict(b=1, l=4705, causal=True)) == "b 1, l 4705, causal True"
    assert describe(dict(points=4, maps=((5, 7), (3, 4)))) == "points 4, maps 5×7 3×4"

import pytest
import torch

from backbones import SimpleFPN
from tests.testing import assert_close, load_fixture


def test_equals_the_released_neck():
    tensors, weights, _ = load_fixture("simple_fpn")
    neck = SimpleFPN(64, 32, 4)
    neck.load_state_dict(weights)
    outs = neck((torch.zeros(1), tensors["input"]))
    assert len(outs) == 4
    for i, out in enumerate(outs):
        assert_close(out, tensors[f"output/{i}"], f"output {i}", 1e-5)


@pytest.mark.parametrize("num_outs", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("size, start", [((1, 1), 0), ((1, 7), 0), ((6, 10), 0), ((6, 10), 1), ((6, 10), 3)])
def test_scales(num_outs, size, start):
    neck = SimpleFPN(16, 8, num_outs, start)
    outs = neck(torch.randn(2, 16, *size))
    h, w = size
    sides = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), (max(h // 2, 1), max(w // 2, 1))]
    while len(sides) < start + num_outs:
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    assert [tuple(out.shape) for out in outs] == [(2, 8, *s) for s in sides[start : start + num_outs]]
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None for p in neck.parameters())


def test_extra_levels_subsample():
    outs = SimpleFPN(16, 8, 5)(torch.randn(1, 16, 8, 12))
    assert torch.equal(outs[4], outs[3][..., ::2, ::2])


def test_16_bit_model():
    outs = SimpleFPN(16, 8).bfloat16()(torch.randn(1, 16, 4, 4).bfloat16())
    assert all(out.dtype == torch.bfloat16 and out.isfinite().all() for out in outs)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(in_channels=30),
        dict(in_channels=[64, 64]),
        dict(in_channels=16, num_outs=0),
        dict(in_channels=16, start_level=4),
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="got"):
        SimpleFPN(**arguments)

"""The inner part of a Mamba block: every backend against the same written with plain operations in float64."""

import pytest
import torch
import torch.nn.functional as F

from backbones.ops import defocus_scan
from backbones.ops.mamba_inner import MAMBA_INNER, mamba_inner
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.ops.heads import running
from tests.testing import TOLERANCE, assert_close

NAMES = ("xz", "conv_weight", "conv_bias", "x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A", "D", "freq")
SCALES = dict(rope_scale=2.25, delta_scale=1.5)
RUNNING = running(MAMBA_INNER)


def values(b, l, d, n, rank):
    shapes = ((b, l, 2 * d), (d, 1, 3), (d,), (rank + 2 * n, d), (d, rank), (d,))
    weights = [torch.randn(shape) for shape in shapes]
    weights[3], weights[4] = weights[3] * 0.3, weights[4] * 0.3
    return [*weights, -torch.rand(d, n).add(0.5), torch.randn(d), torch.rand(n)]


def definition(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias, A, D, freq, group):
    x, z = xz.chunk(2, dim=-1)
    padded = F.pad(x.transpose(1, 2), (conv_weight.shape[-1] - 1, 0))
    u = F.silu(F.conv1d(padded, conv_weight, conv_bias, groups=len(conv_bias))).transpose(1, 2)
    low_rank, B, C = (u @ x_proj_weight.t()).split([dt_proj_weight.shape[1], A.shape[1], A.shape[1]], dim=-1)
    dt = low_rank @ dt_proj_weight.t()
    inputs = (u, dt, A, B, C, D, z, freq, dt_proj_bias)
    return defocus_scan(*inputs, **SCALES, norm_group_dims=group, backend="reference")


def check(shape, group, device, backend, dtype=torch.float32):
    """Output and all gradients, with xz in ``dtype`` and the weights in fp32, as under autocast."""
    leaves = values(*shape)
    leaves[0] = leaves[0].to(dtype)
    truth_leaves = [x.double().requires_grad_() for x in leaves]
    expected = definition(*truth_leaves, group)
    weight = torch.randn(expected.shape)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), truth_leaves)
    leaves = [x.to(device).requires_grad_() for x in leaves]
    out = mamba_inner(*leaves, **SCALES, norm_group_dims=group, backend=backend)
    assert out.dtype == dtype
    tolerance = 5 * TOLERANCE[dtype]
    assert_close(out, expected, "output", tolerance)
    grads = torch.autograd.grad((out * weight.to(device)).sum(), leaves)
    for name, actual, grad, leaf in zip(NAMES, grads, expected_grads, leaves, strict=True):
        assert actual.dtype == leaf.dtype
        assert_close(actual, grad, f"gradient of {name}", tolerance)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_matches_the_definition(device, backend):
    check((2, 40, 24, 4, 3), 8, device, backend)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_products_are_in_the_dtype_of_the_input(device, backend):
    check((2, 40, 24, 4, 3), 8, device, backend, torch.float16)


def test_bad_input():
    arguments = values(1, 2, 4, 2, 3)
    arguments[3] = torch.zeros(8, 4)
    with pytest.raises(ValueError, match=r"x_proj_weight \(7, 4\), got \(1, 2, 8\) and \(8, 4\)"):
        mamba_inner(*arguments, norm_group_dims=4)


def test_devices_have_to_agree():
    """The kernels of a GPU would read the address in their own memory."""
    arguments = values(1, 2, 4, 2, 3)
    arguments[3] = arguments[3].to("meta")
    message = "xz is on cpu, conv_weight on cpu, conv_bias on cpu, x_proj_weight on meta, .*: move them to one device"
    with pytest.raises(ValueError, match=message):
        mamba_inner(*arguments, norm_group_dims=4)


@pytest.mark.parametrize("name", MAMBA_INNER.backends)
def test_its_bits_may_differ_where_those_of_its_parts_may(name):
    whole, part = MAMBA_INNER.backends[name], DEFOCUS_SCAN.backends[name]
    assert whole.may_differ("cuda") == part.may_differ("cuda")

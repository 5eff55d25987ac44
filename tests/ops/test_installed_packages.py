"""Our half of the backends that run on others' CUDA kernels: what is handed over, and what is made of the result.

In place of each package stands the formula of its documentation, slow and plain, so that this runs without a GPU.
"""

import importlib.machinery
import sys
import types

import pytest
import torch

from backbones.ops.deformable_attention import mmcv_backend
from backbones.ops.selective_scan.mamba_ssm_backend import mamba_ssm_causal_conv1d_silu, mamba_ssm_defocus_scan
from tests.ops import test_causal_conv1d, test_deformable_attention, test_selective_scan
from tests.testing import TOLERANCE, assert_close


def install(monkeypatch, name, **members):
    """Puts a module with these members in place of a package's, which need not be installed."""
    parents = [name.rsplit(".", n)[0] for n in range(name.count(".") + 1)]
    for path in parents:
        module = types.ModuleType(path)
        module.__spec__ = importlib.machinery.ModuleSpec(path, None)
        monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(members)


class MultiScaleDeformableAttnFunction:
    """mmcv's: a level is found by its start; the batch is taken ``im2col_step`` images at a time."""

    @staticmethod
    def apply(value, shapes, starts, locations, weights, im2col_step):
        assert len(value) % min(len(value), im2col_step) == 0
        assert shapes.dtype == starts.dtype == torch.int64 and value.dtype == locations.dtype == weights.dtype
        out = 0
        for level, ((h, w), start) in enumerate(zip(shapes.tolist(), starts.tolist())):
            cells = value[:, start : start + h * w].unflatten(1, (h, w))
            x, y = (locations[:, :, :, level, :, i] * side - 0.5 for i, side in ((0, w), (1, h)))
            tent_x = (1 - (x[..., None] - torch.arange(w)).abs()).clamp_min(0)
            tent_y = (1 - (y[..., None] - torch.arange(h)).abs()).clamp_min(0)
            out = out + torch.einsum("bqhp,bqhpy,bqhpx,byxhc->bqhc", weights[:, :, :, level], tent_y, tent_x, cells)
        return out.flatten(2)


@pytest.mark.parametrize("at_once", [64, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_mmcv_is_given(monkeypatch, dtype, at_once):
    name = "mmcv.ops.multi_scale_deform_attn"
    install(monkeypatch, name, MultiScaleDeformableAttnFunction=MultiScaleDeformableAttnFunction)
    monkeypatch.setattr(mmcv_backend, "IMAGES_AT_ONCE", at_once)
    value, *places = (x.detach().float() for x in test_deformable_attention.inputs())
    leaves = [x.requires_grad_() for x in (value.to(dtype), *places)]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    expected = test_deformable_attention.run("reference", *doubles)
    out = mmcv_backend.mmcv_deformable_attention(leaves[0], test_deformable_attention.SHAPES, *leaves[1:])
    assert out.dtype == dtype
    assert_close(out, expected)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for actual, truth in zip(grads, torch.autograd.grad((expected * weight).sum(), doubles)):
        assert_close(actual, truth, "gradient", TOLERANCE[dtype])


def test_mmcv_takes_a_batch_of_any_size(monkeypatch):
    seen = []

    class Function:
        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step):
            seen.append(im2col_step)
            return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, im2col_step)

    install(monkeypatch, "mmcv.ops.multi_scale_deform_attn", MultiScaleDeformableAttnFunction=Function)
    for batch in (1, 64, 65, 134):
        tensors = torch.rand(batch, 2, 1, 1), [(1, 2)], torch.rand(batch, 1, 1, 1, 1, 2), torch.rand(batch, 1, 1, 1, 1)
        assert mmcv_backend.mmcv_deformable_attention(*tensors).shape == (batch, 1, 1)
    assert seen == [1, 64, 13, 2]


@pytest.mark.parametrize("batch, queries", [(0, 1), (2, 0)])
def test_mmcv_is_not_asked_for_nothing(monkeypatch, batch, queries):
    install(monkeypatch, "mmcv.ops.multi_scale_deform_attn", MultiScaleDeformableAttnFunction=None)
    places, weights = torch.rand(batch, queries, 1, 1, 1, 2), torch.rand(batch, queries, 1, 1, 1)
    leaves = [x.requires_grad_() for x in (torch.rand(batch, 2, 1, 1), places, weights)]
    out = mmcv_backend.mmcv_deformable_attention(leaves[0], [(1, 2)], *leaves[1:])
    assert out.shape == (batch, queries, 1)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves)):
        assert grad.shape == leaf.shape and not grad.any()


def test_mmcv_is_told_of_maps_without_waiting_for_the_device(monkeypatch):
    name = "mmcv.ops.multi_scale_deform_attn"
    install(monkeypatch, name, MultiScaleDeformableAttnFunction=MultiScaleDeformableAttnFunction)
    tensors = torch.rand(1, 2, 1, 1), [(1, 2)], torch.rand(1, 1, 1, 1, 1, 2), torch.rand(1, 1, 1, 1, 1)
    expected = mmcv_backend.mmcv_deformable_attention(*tensors)
    # What makes a tensor of numbers of the host, on a GPU, waits until it is there.
    monkeypatch.delattr(torch, "tensor")
    assert torch.equal(mmcv_backend.mmcv_deformable_attention(*tensors), expected)


# Dtypes of the sequences that the scan below was given.
HANDED = []


def selective_scan_fn(u, delta, A, B, C):
    """mamba_ssm's, without its optional arguments: u and delta `(b, d, l)`, B and C `(b, groups, n, l)`."""
    b, d, l = u.shape
    assert delta.shape == (b, d, l) and B.shape == C.shape == (b, 1, A.shape[1], l)
    assert A.dtype == torch.float32 and {x.dtype for x in (u, delta, B, C)} == {u.dtype}
    HANDED.append(u.dtype)
    u, delta, B, C = (x.float() for x in (u, delta, B, C))
    h, ys = u.new_zeros(b, d, A.shape[1]), []
    for t in range(l):
        h = torch.exp(delta[..., t, None] * A) * h + (delta * u)[..., t, None] * B[..., t]
        ys.append((h * C[..., t]).sum(-1))
    return torch.stack(ys, -1).to(HANDED[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_mamba_ssm_is_given(monkeypatch, dtype):
    install(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn=selective_scan_fn)
    inputs, weight, group, expected, expected_grads = test_selective_scan.truth((3, 34, 48, 6, 24), dtype)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = mamba_ssm_defocus_scan(*leaves, 2.25, 1.5, group)
    assert out.dtype == dtype and HANDED[-1] == torch.float32
    assert_close(out, expected, "output")
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for name, actual, grad in zip(test_selective_scan.NAMES, grads, expected_grads):
        assert_close(actual, grad, f"gradient of {name}", TOLERANCE[dtype])


def causal_conv1d_fn(x, weight, bias=None, activation=None):
    """causal_conv1d's: out_t = Σ_j weight_j x_{t-k+1+j}; x `(b, d, l)`, weight `(d, k)`."""
    assert activation == "silu" and x.stride(1) == 1 and x.shape[1] % 8 == 0
    k, out = weight.shape[1], torch.zeros_like(x) + bias[:, None]
    for t in range(x.shape[2]):
        for j in range(k):
            if t - k + 1 + j >= 0:
                out[:, :, t] = out[:, :, t] + weight[:, j] * x[:, :, t - k + 1 + j]
    return out * torch.sigmoid(out)


@pytest.mark.parametrize("channels", [16, 6])
@pytest.mark.parametrize("installed", [True, False])
def test_what_causal_conv1d_is_given(monkeypatch, installed, channels):
    if installed:
        install(monkeypatch, "causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)
    else:
        monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    x, weight, bias = torch.randn(2, 9, channels), torch.randn(channels, 1, 4), torch.randn(channels)
    out = mamba_ssm_causal_conv1d_silu(x, weight, bias)
    assert_close(out, test_causal_conv1d.definition(*(t.double() for t in (x, weight, bias))))

"""The `triton` backend of the inner part of a block: what is cheap to compute again is not kept for backward.

Kept are the input, the low rank of Δ with B and C, and the states of the scan. The convolution and the step sizes, both
as large as the input's halves, are made again. Gradients are written where the next product reads them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.autograd import differentiable
from backbones.ops.selective_scan.registration import no_second_derivative


@torch.library.custom_op("defocus::mamba_inner_triton", mutates_args=())
def _forward(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    A: Tensor,
    D: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    norm_group_dims: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from backbones.ops.causal_conv1d import triton_kernels as conv
    from backbones.ops.selective_scan import triton_kernels as scan

    x, z = xz.chunk(2, dim=-1)
    u = conv.forward(x, conv_weight, conv_bias)
    low = F.linear(u, x_proj_weight.to(u.dtype))
    low_rank, B, C = low.split([dt_proj_weight.shape[1], A.shape[1], A.shape[1]], dim=-1)
    dt = F.linear(low_rank, dt_proj_weight.to(u.dtype))
    out, states = scan.forward(u, dt, A, B, C, D, z, freq, dt_proj_bias, rope_scale, delta_scale, norm_group_dims)
    return out, low, states


@_forward.register_fake
def _(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias, A, D, freq, *scales):
    from backbones.ops.selective_scan.triton_sizes import CHUNK

    b, l, _ = xz.shape
    d, n = A.shape
    states = xz.new_empty((b, (l + CHUNK - 1) // CHUNK, d, n), dtype=torch.float32)
    return xz.new_empty((b, l, d)), xz.new_empty((b, l, x_proj_weight.shape[0])), states


@torch.library.custom_op("defocus::mamba_inner_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    low: Tensor,
    states: Tensor,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    A: Tensor,
    D: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    norm_group_dims: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from backbones.ops.causal_conv1d import triton_kernels as conv
    from backbones.ops.selective_scan import triton_kernels as scan

    rank, (d, n) = dt_proj_weight.shape[1], A.shape
    x, z = xz.split(d, dim=-1)
    low_rank, B, C = low.split([rank, n, n], dim=-1)
    x_weight, dt_weight = x_proj_weight.to(low.dtype), dt_proj_weight.to(low.dtype)
    u, dt = conv.forward(x, conv_weight, conv_bias), F.linear(low_rank, dt_weight)

    dxz, dlow = torch.empty(xz.shape, dtype=xz.dtype, device=xz.device), torch.empty_like(low)
    dlow_rank, dB, dC = dlow.split([rank, n, n], dim=-1)
    dx, dz = dxz.split(d, dim=-1)
    du, ddt, dA, _, _, dD, _, dfreq, dbias = scan.backward(
        grad, states, u, dt, A, B, C, D, z, freq, dt_proj_bias, rope_scale, delta_scale, norm_group_dims,
        dz=dz, dB=dB, dC=dC,
    )  # fmt: skip
    del dt
    ddt = ddt.flatten(0, 1)
    ddt_weight = ddt.t() @ low_rank.flatten(0, 1)
    torch.mm(ddt, dt_weight, out=dlow_rank.flatten(0, 1))
    del ddt
    dx_weight = dlow.flatten(0, 1).t() @ u.flatten(0, 1)
    # u feeds the scan and the projection: the product adds to what the scan gave.
    du.flatten(0, 1).addmm_(dlow.flatten(0, 1), x_weight)
    del u
    _, dconv_weight, dconv_bias = conv.backward(du, x, conv_weight, conv_bias, dx=dx)
    grads = (dconv_weight, dconv_bias, dx_weight, ddt_weight, dbias, dA, dD, dfreq)
    weights = (conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias, A, D, freq)
    return dxz, *(g.to(w.dtype).contiguous() for g, w in zip(grads, weights, strict=True))


@_backward.register_fake
def _(grad, low, states, xz, *weights_and_scales):
    return tuple(x.new_empty(x.shape) for x in (xz, *weights_and_scales[:8]))


def _setup_context(ctx, inputs, output):
    # Else autograd makes gradients of zeros for what is only kept.
    ctx.set_materialize_grads(False)
    *tensors, ctx.rope_scale, ctx.delta_scale, ctx.norm_group_dims = inputs
    _, low, states = output
    ctx.save_for_backward(low, states, *tensors)
    ctx.mark_non_differentiable(low, states)


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 12
    grads = _backward(grad, *ctx.saved_tensors, ctx.rope_scale, ctx.delta_scale, ctx.norm_group_dims)
    return *grads, None, None, None


_backward.register_autograd(no_second_derivative("triton", "mamba_inner"))
_inner = differentiable(_forward, _differentiate, _setup_context)


def triton_mamba_inner(*args) -> Tensor:
    """See `mamba_inner`."""
    return _inner(*args)[0]

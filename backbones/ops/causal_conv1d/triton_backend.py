"""The `triton` backend of the causal convolution: one operator that torch.compile and autograd understand."""

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable
from backbones.ops.selective_scan.registration import no_second_derivative


@torch.library.custom_op("defocus::causal_conv1d_silu_triton", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from backbones.ops.causal_conv1d import triton_kernels

    return triton_kernels.forward(x, weight, bias)


@_convolve.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("defocus::causal_conv1d_silu_triton_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from backbones.ops.causal_conv1d import triton_kernels

    dx, dweight, dbias = triton_kernels.backward(grad, x, weight, bias)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


@_backward.register_fake
def _(grad, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


_backward.register_autograd(no_second_derivative("triton", "causal_conv1d_silu"))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return _backward(grad, *ctx.saved_tensors)


# See `causal_conv1d_silu`.
triton_causal_conv1d_silu = differentiable(_convolve, _differentiate, _setup_context)

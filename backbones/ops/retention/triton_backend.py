"""The `triton` backend of retention. Its kernels are imported when first run: nobody else needs Triton."""

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable, refuse_second_derivatives


@torch.library.custom_op("defocus::retention_triton", mutates_args=())
def _retain(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    from backbones.ops.retention import triton_kernels

    return triton_kernels.forward(q, k, v, decay, freq, rope_scale, delta_scale)


@_retain.register_fake
def _(q, k, v, decay, freq, rope_scale, delta_scale):
    return q.new_empty(v.shape)


@torch.library.custom_op("defocus::retention_triton_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from backbones.ops.retention import triton_kernels

    inputs = (q, k, v, decay, freq)
    grads = triton_kernels.backward(grad, *inputs, rope_scale, delta_scale)
    dq, dk, dv, ddecay, dfreq = (g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv, ddecay, dfreq


@_backward.register_fake
def _(grad, q, k, v, decay, freq, rope_scale, delta_scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, decay, freq))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.rope_scale, ctx.delta_scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad):
    if grad is None:
        return (None,) * 7
    return *_backward(grad, *ctx.saved_tensors, ctx.rope_scale, ctx.delta_scale), None, None


_backward.register_autograd(refuse_second_derivatives("this backend of retention has first derivatives only"))

# See `retention`.
triton_retention = differentiable(_retain, _differentiate, _setup_context)

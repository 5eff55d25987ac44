"""The `triton` backend of De-focus attention. Its kernels are imported when first run: nobody else needs Triton."""

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable, refuse_second_derivatives


@torch.library.custom_op("defocus::decay_attention_triton", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    from backbones.ops.decay_attention import triton_kernels

    return triton_kernels.forward(q, k, v, decay, freq, rope_scale, delta_scale, causal)


@_attend.register_fake
def _(q, k, v, decay, freq, rope_scale, delta_scale, causal):
    b, l, h = q.shape[:3]
    return q.new_empty(v.shape), q.new_empty((b, h, l), dtype=torch.float32)


@torch.library.custom_op("defocus::decay_attention_triton_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from backbones.ops.decay_attention import triton_kernels

    inputs = (q, k, v, decay, freq)
    grads = triton_kernels.backward(grad, out, lse, *inputs, rope_scale, delta_scale, causal)
    dq, dk, dv, ddecay, dfreq = (g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))
    return dq, dk, dv, ddecay, dfreq


@_attend_backward.register_fake
def _(grad, out, lse, q, k, v, decay, freq, rope_scale, delta_scale, causal):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, decay, freq))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.rope_scale, ctx.delta_scale, ctx.causal = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 8
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.rope_scale, ctx.delta_scale, ctx.causal), None, None, None


_attention = differentiable(_attend, _differentiate, _setup_context)
_attend_backward.register_autograd(
    refuse_second_derivatives("this backend of decay_attention has first derivatives only")
)


def triton_decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> Tensor:
    """See `decay_attention`."""
    return _attention(q, k, v, decay, freq, rope_scale, delta_scale, causal)[0]

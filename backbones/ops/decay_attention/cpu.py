"""De-focus attention on the processor: matrix products by PyTorch, and between them `csrc/decay_attention.cpp`.

A block of queries at a time, so that its scores exist only while it is worked on; with causal attention the keys after
a block are not touched. Decay, mask and softmax are one visit of each row, which fits a core's first cache.
"""

import ctypes
import math

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable, refuse_second_derivatives
from backbones.ops.cpu_extension import DTYPES, call
from backbones.ops.decay_attention.blocked import heads_apart

QUERIES = 128
# Numbers of the longest vector of the compiled code: so far it may read beyond a table.
LANES = 16
LOG2_E = math.log2(math.e)


class _Arguments(ctypes.Structure):
    """`DecayArguments` of the C++ side."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "rows", "columns", "first", "length", "causal")),
        *((name, ctypes.c_void_p) for name in ("factors", "scores", "lse", "dscores", "inner", "ddecay")),
    ]


def _blocks(length: int, causal: bool):
    """Queries and keys of each block, as slices."""
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        yield slice(start, end), slice(0, end if causal else length)


def _factors(decay: Tensor, length: int, channels: int) -> Tensor:
    """What makes products of one head scores in base 2, by distance from -(length - 1) on; one row a head."""
    distance = torch.arange(1 - length, length + LANES, dtype=decay.dtype).abs()
    return torch.exp(decay[:, None] * distance) * (LOG2_E * channels**-0.5)


def _run(function: str, first: int, causal: bool, factors: Tensor, **tensors: Tensor) -> None:
    scores = tensors["scores"]
    length = (factors.shape[0] - LANES + 1) // 2
    arguments = _Arguments(DTYPES.index(scores.dtype), *scores.shape, first, length, causal)
    for name, x in (tensors | dict(factors=factors)).items():
        setattr(arguments, name, x.data_ptr())
    call(function, arguments)


@torch.library.custom_op("defocus::decay_attention_cpu", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention over turned q and k, all `(b, h, l, ·)`, and λ `(h,)` divided by its scale; and what backward needs."""
    b, heads, length, channels = q.shape
    out = v.new_empty(v.shape)
    lse = decay.new_empty(b, heads, length)
    factors = _factors(decay, length, channels)
    for head in range(heads):
        for queries, keys in _blocks(length, causal):
            scores = torch.bmm(q[:, head, queries], k[:, head, keys].transpose(1, 2))
            sums = decay.new_empty(scores.shape[:2])
            _run("defocus_decay_forward", queries.start, causal, factors[head], scores=scores, lse=sums)
            lse[:, head, queries] = sums
            out[:, head, queries] = torch.bmm(scores, v[:, head, keys])
    return out, lse


@_attend.register_fake
def _(q, k, v, decay, causal):
    return v.new_empty(v.shape), decay.new_empty(q.shape[:3])


@torch.library.custom_op("defocus::decay_attention_cpu_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, channels = q.shape[2:]
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    ddecay = torch.zeros_like(decay)
    inner = (grad.to(lse.dtype) * out).sum(-1)
    factors = _factors(decay, length, channels)
    for head in range(q.shape[1]):
        for queries, keys in _blocks(length, causal):
            g = grad[:, head, queries]
            scores = torch.bmm(q[:, head, queries], k[:, head, keys].transpose(1, 2))
            dscores = torch.bmm(g, v[:, head, keys].transpose(1, 2))
            sums, block_inner = (x[:, head, queries].contiguous() for x in (lse, inner))
            terms = torch.empty_like(sums)
            _run(
                "defocus_decay_backward",
                *(queries.start, causal, factors[head]),
                scores=scores,
                lse=sums,
                dscores=dscores,
                inner=block_inner,
                ddecay=terms,
            )
            ddecay[head] += terms.sum()
            dv[:, head, keys].baddbmm_(scores.transpose(1, 2), g)
            dk[:, head, keys].baddbmm_(dscores.transpose(1, 2), q[:, head, queries])
            dq[:, head, queries] = torch.bmm(dscores, k[:, head, keys])
    return dq, dk, dv, ddecay


@_attend_backward.register_fake
def _(grad, out, lse, q, k, v, decay, causal):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, decay))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.causal), None


_attention = differentiable(_attend, _differentiate, _setup_context)
_attend_backward.register_autograd(
    refuse_second_derivatives("this backend of decay_attention has first derivatives only")
)


def cpu_decay_attention(
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
    dtype, heads = q.dtype, heads_apart(q, k, v, decay, freq, rope_scale, delta_scale)
    return _attention(*heads, causal)[0].transpose(1, 2).to(dtype)

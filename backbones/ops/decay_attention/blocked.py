"""De-focus attention in plain PyTorch, a block of queries at a time.

A block's scores exist only while it is worked on, in forward and again in backward. With causal attention the keys
after a block are not touched, so that the upper triangle is computed on the diagonal blocks alone.
"""

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable
from backbones.ops.rotary import rotate_pairs

# One head's scores of this many queries against a few thousand keys fit a core's cache.
QUERIES = 128


def _blocks(length: int):
    """(start, end) of each block of queries."""
    return ((start, min(start + QUERIES, length)) for start in range(0, length, QUERIES))


def _weights_by_distance(decay: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Decay weights and distances of one block of queries against keys at every distance.

    Row i and column c hold the pair whose key lies ``length + i - c`` before its query, so that the block that
    starts at t finds its keys s in the columns ``s - t + length``: a slice, whatever the block.

    Args:
        decay: λ of one head, divided by the scale; 0-dimensional.
        length: Number of tokens.

    Returns:
        exp(λ |distance|) and |distance|, each `(QUERIES, 2 · length)`.
    """
    rows = torch.arange(min(QUERIES, length), device=decay.device, dtype=decay.dtype)
    columns = torch.arange(2 * length, device=decay.device, dtype=decay.dtype)
    distance = (length + rows[:, None] - columns).abs()
    return torch.exp(decay * distance), distance


def _future(start: int, end: int, device: torch.device) -> Tensor:
    """Which pairs of a block of queries and all keys up to its end lie ahead of their query, `(end - start, end)`."""
    return torch.ones(end - start, end, dtype=torch.bool, device=device).triu_(start + 1)


def _scores(q, k, table, head, start, end, last, causal):
    """Logits of a block of queries, at least fp32, `(b, t, s)`, and their decay weights `(t, s)`."""
    length = q.shape[2]
    weights = table[: end - start, length - start : length - start + last]
    scores = torch.bmm(q[:, head, start:end], k[:, head, :last].transpose(1, 2)).to(table.dtype).mul_(weights)
    if causal:
        scores[..., start:].masked_fill_(_future(start, end, scores.device)[:, start:], float("-inf"))
    return scores, weights


@torch.library.custom_op("defocus::blocked_attention", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, causal: bool) -> Tensor:
    """Attention over turned, scaled q and k in the layout `(b, h, l, ·)`, and λ `(h,)` divided by its scale."""
    length = q.shape[2]
    out = v.new_empty(*q.shape[:3], v.shape[-1])
    for head in range(q.shape[1]):
        table, _ = _weights_by_distance(decay[head], length)
        for start, end in _blocks(length):
            last = end if causal else length
            scores, _ = _scores(q, k, table, head, start, end, last, causal)
            out[:, head, start:end] = torch.bmm(scores.softmax(-1).to(v.dtype), v[:, head, :last])
    return out


@_attend.register_fake
def _(q, k, v, decay, causal):
    return v.new_empty(*q.shape[:3], v.shape[-1])


@torch.library.custom_op("defocus::blocked_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length = q.shape[2]
    dq, dk, dv = torch.empty(q.shape, dtype=q.dtype, device=q.device), k.new_zeros(k.shape), v.new_zeros(v.shape)
    ddecay = decay.new_zeros(decay.shape)
    for head in range(q.shape[1]):
        table, distances = _weights_by_distance(decay[head], length)
        for start, end in _blocks(length):
            last = end if causal else length
            scores, weights = _scores(q, k, table, head, start, end, last, causal)
            p = scores.softmax(-1)
            g = grad[:, head, start:end]
            dv[:, head, :last] += torch.bmm(p.transpose(1, 2).to(g.dtype), g)
            dscores = torch.bmm(g, v[:, head, :last].transpose(1, 2)).to(p.dtype)
            inner = (g * out[:, head, start:end]).to(p.dtype).sum(-1, keepdim=True)
            dscores.sub_(inner).mul_(p)
            if causal:
                # Where a score is -inf its share is 0, but 0 times -inf is no number.
                scores[..., start:].masked_fill_(_future(start, end, scores.device)[:, start:], 0)
            columns = slice(length - start, length - start + last)
            scores.mul_(dscores).mul_(distances[: end - start, columns])
            ddecay[head] += scores.sum()
            dscores = dscores.mul_(weights).to(q.dtype)
            dq[:, head, start:end] = torch.bmm(dscores, k[:, head, :last])
            dk[:, head, :last] += torch.bmm(dscores.transpose(1, 2), q[:, head, start:end])
    return dq, dk, dv, ddecay


@_attend_backward.register_fake
def _(grad, out, q, k, v, decay, causal):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), decay.new_empty(decay.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx, grad):
    return *_attend_backward(grad, *ctx.saved_tensors, ctx.causal), None


_attention = differentiable(_attend, _differentiate, _setup_context)


def heads_apart(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turned q and k, and v, each `(b, h, l, ·)`, and λ divided by its scale, at least fp32."""
    if q.dtype == torch.float16:
        # A product of queries and keys may be larger than fp16 goes, though its decayed weight is not.
        q, k, v = q.float(), k.float(), v.float()
    q, k = rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale)
    decay = decay.to(torch.promote_types(decay.dtype, torch.promote_types(q.dtype, torch.float32))) / delta_scale
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return q, k, v, decay


def blocked_decay_attention(
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
    dtype = q.dtype
    q, k, v, decay = heads_apart(q, k, v, decay, freq, rope_scale, delta_scale)
    return _attention(q * q.shape[-1] ** -0.5, k, v, decay, causal).transpose(1, 2).to(dtype)

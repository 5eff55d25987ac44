"""De-focus attention as a program to export: a block of queries at a time, so that only its scores exist."""

import torch
from torch import Tensor

from backbones.ops.exported import cut_heads, join_heads, over_chunks
from backbones.ops.rotary import rotate_pairs

QUERIES = 128


def _attend(first: Tensor, block: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """One block of queries.

    Args:
        first: Position of its first query, `(1,)`.
        block: Turned and scaled queries, `(b, h, t, k)`.
        k: All keys, turned, `(b, h, k, l)`.
        v: All values, `(b, h, l, v)`.
        decay: λ divided by its scale, `(h, 1, 1)`.

    Returns:
        The position of the next block, and the outputs `(b, h, t, v)`.
    """
    scores, _ = _scores(first, block, k, decay)
    return first + QUERIES, torch.matmul(scores.softmax(-1), v)


def _attend_causal(first: Tensor, block: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """As `_attend`, to a query's own key and those before it."""
    scores, distance = _scores(first, block, k, decay)
    scores = torch.where(distance < 0, float("-inf"), scores)
    return first + QUERIES, torch.matmul(scores.softmax(-1), v)


def _scores(first: Tensor, block: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Decayed logits `(b, h, t, l)`, and how far each key lies before its query `(t, l)`."""
    queries = first + torch.arange(QUERIES, device=k.device, dtype=first.dtype)
    distance = queries[:, None] - torch.arange(k.shape[3], device=k.device, dtype=first.dtype)
    return torch.matmul(block, k) * torch.exp(decay * distance.abs()), distance


def exported_decay_attention(
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
    length, _, keys = q.shape[1:]
    dtype = q.dtype
    work = torch.promote_types(q.dtype, torch.float32)
    q, k, v, decay, freq = (x.to(work) for x in (q, k, v, decay, freq))
    q, k = rotate_pairs(q, freq, rope_scale) * keys**-0.5, rotate_pairs(k, freq, rope_scale)
    constants = [k.permute(0, 2, 3, 1).contiguous(), v.transpose(1, 2).contiguous(), decay[:, None, None] / delta_scale]
    blocks = cut_heads(q, QUERIES)
    y = over_chunks(_attend_causal if causal else _attend, q.new_zeros(1), blocks, constants)
    return join_heads(y, length).to(dtype)

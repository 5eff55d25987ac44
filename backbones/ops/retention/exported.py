"""Retention as a program to export: matrix products within a chunk, one state from chunk to chunk."""

import torch
from torch import Tensor

from backbones.ops.exported import cut_heads, join_heads, over_chunks
from backbones.ops.rotary import rotate_pairs

CHUNK = 128


def _retain_chunk(
    state: Tensor, chunk: Tensor, within: Tensor, since_start: Tensor, to_end: Tensor, across: Tensor
) -> tuple[Tensor, Tensor]:
    """One chunk.

    Args:
        state: Σ decayed k vᵀ of what came before, `(b, h, k, v)`.
        chunk: Turned q and k, and v side by side, `(b, h, t, 2 k + v)`.
        within: Decay from one token of a chunk to another, `(h, t, t)`.
        since_start: From before the chunk to each token, `(h, t, 1)`.
        to_end: From each token to the last, `(h, t, 1)`.
        across: Of a whole chunk, `(h, 1, 1)`.

    Returns:
        The state after the chunk, and the outputs `(b, h, t, v)`.
    """
    keys, values = state.shape[2:]
    q, k, v = chunk.split([keys, keys, values], dim=-1)
    own = torch.matmul(torch.matmul(q, k.transpose(-1, -2)) * within, v)
    carried = torch.matmul(q * since_start, state)
    state = state * across + torch.matmul((k * to_end).transpose(-1, -2), v)
    return state, own + carried


def exported_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """See `retention`."""
    b, length, heads, keys = q.shape
    dtype = q.dtype
    work = torch.promote_types(q.dtype, torch.float32)
    q, k, v, decay, freq = (x.to(work) for x in (q, k, v, decay, freq))
    q, k = (rotate_pairs(x, freq, rope_scale) for x in (q, k))
    decay = decay[:, None] / delta_scale
    step = torch.arange(CHUNK, device=q.device, dtype=work)
    distance = step[:, None] - step
    within = torch.exp(decay[:, :, None] * distance.clamp_min(0)) * (distance >= 0)
    since_start = torch.exp(decay * (step + 1))[..., None]
    to_end = torch.exp(decay * (CHUNK - 1 - step))[..., None]
    across = torch.exp(decay * CHUNK)[..., None]

    chunks = cut_heads(torch.cat((q, k, v), dim=-1), CHUNK)
    state = q.new_zeros(b, heads, keys, v.shape[3])
    y = over_chunks(_retain_chunk, state, chunks, [within, since_start, to_end, across])
    return join_heads(y, length).to(dtype)

"""Retention chunk by chunk in plain PyTorch: linear in the number of tokens, differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.rotary import rotate_pairs

CHUNK = 128
# So many chunks go through a batched product together: few calls, and matrices that stay in the cache.
CHUNKS_AT_ONCE = 4


def chunked_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """See `retention`."""
    length, work = q.shape[1], torch.promote_types(decay.dtype, torch.float32)
    q, k = rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale)
    chunk = min(CHUNK, length)
    # (b, l, h, ·) to (chunks, b, h, chunk, ·); the padding stands at the end, where no real token sees it.
    q, k, v = (
        F.pad(x, (0, 0, 0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4) for x in (q, k, v)
    )
    decay = decay.to(work)[:, None] / delta_scale
    step = torch.arange(chunk, device=q.device, dtype=work)
    distance = step[:, None] - step
    within = torch.exp(decay[:, :, None] * distance.clamp_min(0)) * (distance >= 0)
    since_start = torch.exp(decay * (step + 1))[..., None]
    to_end = torch.exp(decay * (chunk - 1 - step))[..., None]
    across = torch.exp(decay * chunk)[..., None]

    # What each chunk finds of all before it; kept in fp32, it is a sum over the whole sequence.
    state, out = q.new_zeros(*q.shape[1:3], q.shape[-1], v.shape[-1], dtype=work), []
    for part in zip(*(x.split(CHUNKS_AT_ONCE) for x in (q, k, v)), strict=True):
        q, k, v = part
        added = torch.matmul((k * to_end.to(k.dtype)).transpose(-1, -2), v).to(work)
        before = []
        for i in range(added.shape[0]):
            before.append(state)
            state = state * across + added[i]
        own = torch.matmul(torch.matmul(q, k.transpose(-1, -2)) * within.to(q.dtype), v)
        out.append(own + torch.matmul(q * since_start.to(q.dtype), torch.stack(before).to(q.dtype)))
    return torch.cat(out).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]

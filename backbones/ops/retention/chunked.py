"""Retention chunk by chunk in plain PyTorch: linear in the number of tokens, differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.rotary import rotate_pairs

CHUNK = 128
# So many chunks are worked on together: few calls, and all that is made on the way stays in the cache.
CHUNKS_AT_ONCE = 4


def chunked_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """See `retention`."""
    dtype = q.dtype
    if dtype == torch.float16:
        # The sums over a chunk, and the state that they add up to, may be larger than fp16 goes.
        q, k, v = q.float(), k.float(), v.float()
    length, work = q.shape[1], torch.promote_types(decay.dtype, torch.float32)
    chunk = min(CHUNK, length)
    decay = decay.to(work)[:, None] / delta_scale
    step = torch.arange(chunk, device=q.device, dtype=work)
    distance = step[:, None] - step
    within = torch.exp(decay[:, :, None] * distance.clamp_min(0)) * (distance >= 0)
    since_start = torch.exp(decay * (step + 1))[..., None]
    to_end = torch.exp(decay * (chunk - 1 - step))[..., None]
    across = torch.exp(decay * chunk)[..., None]

    # What each chunk finds of all before it; kept in fp32, it is a sum over the whole sequence.
    state, out = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1], dtype=work), []
    for first in range(0, length, chunk * CHUNKS_AT_ONCE):
        part = slice(first, first + chunk * CHUNKS_AT_ONCE)
        q_, k_ = (rotate_pairs(x[:, part], freq, rope_scale, first) for x in (q, k))
        # (b, l, h, ·) to (chunks, b, h, chunk, ·); padding stands at the end, where no real token sees it.
        q_, k_, v_ = (
            F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk)).unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
            for x in (q_, k_, v[:, part])
        )
        added = torch.matmul((k_ * to_end.to(k_.dtype)).transpose(-1, -2), v_).to(work)
        before = []
        for i in range(added.shape[0]):
            before.append(state)
            state = state * across + added[i]
        own = torch.matmul(torch.matmul(q_, k_.transpose(-1, -2)) * within.to(q_.dtype), v_)
        carried = torch.matmul(q_ * since_start.to(q_.dtype), torch.stack(before).to(q_.dtype))
        out.append((own + carried).permute(1, 0, 3, 2, 4).flatten(1, 2))
    return torch.cat(out, dim=1)[:, :length].to(dtype)

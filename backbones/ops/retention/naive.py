"""Retention in its parallel and its recurrent form: two definitions that must agree."""

import torch
from torch import Tensor

from backbones.ops.rotary import rotate_pairs


def _prepare(q, k, v, decay, freq, rope_scale, delta_scale):
    work = torch.promote_types(q.dtype, torch.float32)
    q, k, v, decay, freq = (x.to(work) for x in (q, k, v, decay, freq))
    return rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale), v, decay / delta_scale


def naive_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """Parallel form, every pair of tokens written out; see `retention`."""
    out_dtype = q.dtype
    q, k, v, decay = _prepare(q, k, v, decay, freq, rope_scale, delta_scale)
    position = torch.arange(q.shape[1], device=q.device)
    distance = position[:, None] - position
    weight = torch.exp(decay[:, None, None] * distance.clamp_min(0)) * (distance >= 0)
    return torch.einsum("bthk,bshk,hts,bshv->bthv", q, k, weight, v).to(out_dtype)


def recurrent_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """Recurrent form, token by token: S_t = e^λ S_{t-1} + k_t v_tᵀ, y_t = S_tᵀ q_t; see `retention`."""
    out_dtype = q.dtype
    q, k, v, decay = _prepare(q, k, v, decay, freq, rope_scale, delta_scale)
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = []
    for t in range(q.shape[1]):
        state = state * decay.exp()[:, None, None] + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(out, dim=1).to(out_dtype)

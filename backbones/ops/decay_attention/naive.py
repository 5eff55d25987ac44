"""De-focus attention with every matrix written out: the definition."""

import torch
from torch import Tensor

from backbones.ops.rotary import rotate_pairs


def naive_decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> Tensor:
    """See `decay_attention`. Differentiated by autograd, any float dtype."""
    out_dtype = q.dtype
    work = torch.promote_types(q.dtype, torch.float32)
    q, k, v, decay, freq = (x.to(work) for x in (q, k, v, decay, freq))
    q, k = rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale)
    position = torch.arange(q.shape[1], device=q.device)
    distance = position[:, None] - position
    weight = torch.exp(decay[:, None, None] * distance.abs() / delta_scale)
    logits = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5 * weight
    if causal:
        logits = logits.masked_fill(distance < 0, float("-inf"))
    return torch.einsum("bhts,bshv->bthv", logits.softmax(-1), v).to(out_dtype)

"""De-focus attention on CUDA through PyTorch's FlexAttention, compiled, with gradients to the decay and the phase."""

import functools

import torch
from torch import Tensor

from backbones.ops.dispatch import import_refusal
from backbones.ops.rotary import rotate_pairs


def refusal(device_type: str) -> str | None:
    """None where FlexAttention runs compiled, else the reason."""
    if device_type != "cuda":
        return "FlexAttention's kernels need CUDA"
    return import_refusal("triton", "pip install triton")


@functools.cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_decay_attention(
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
    return _attend(_compiled(), q, k, v, decay, freq, rope_scale, delta_scale, causal)


def _attend(attention, q, k, v, decay, freq, rope_scale, delta_scale, causal):
    from torch.nn.attention.flex_attention import create_block_mask

    q, k = rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale)
    decay = decay.float() / delta_scale

    def decayed(score, batch, head, query, key):
        return score * torch.exp(decay[head] * (query - key).abs())

    def not_ahead(batch, head, query, key):
        return query >= key

    length = q.shape[1]
    mask = create_block_mask(not_ahead, None, None, length, length, device=q.device) if causal else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v, score_mod=decayed, block_mask=mask).transpose(1, 2)

"""Rotary phase with learned frequencies, shared by attention and retention."""

import torch
from torch import Tensor


def rotate_pairs(x: Tensor, freq: Tensor, rope_scale: float = 1.0, first: int = 0) -> Tensor:
    """Turns each pair of channels by e^{iθt}, so that a product of two turned vectors depends on t - s alone.

    Args:
        x: Queries or keys, `(b, l, h, k)`, k even; channels 2i and 2i + 1 are a pair.
        freq: θ, `(h, k / 2)`, radians per position.
        rope_scale: Divides the position.
        first: Position of the first token.

    Returns:
        `(b, l, h, k)` in the dtype of ``x``; positions and angles are at least fp32.
    """
    work = torch.promote_types(freq.dtype, torch.float32)
    position = torch.arange(first, first + x.shape[1], device=x.device, dtype=work) / rope_scale
    angle = position[:, None, None] * freq.to(work)
    cos, sin = angle.cos(), angle.sin()
    even, odd = x[..., 0::2].to(work), x[..., 1::2].to(work)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)

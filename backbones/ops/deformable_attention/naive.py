"""The definition of multi-scale deformable attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def naive_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`, any floating dtype, each of the four neighbours of a point in turn."""
    b, _, heads, _ = value.shape
    out: Any = 0
    batch = torch.arange(b, device=value.device)[:, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None]
    for level, (tokens, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)):
        # Pixel i covers i to i + 1, so its centre, where its value holds, is at i + 1/2.
        x = locations[:, :, :, level, :, 0] * w - 0.5
        y = locations[:, :, :, level, :, 1] * h - 0.5
        left, top = x.floor(), y.floor()
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            token = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()
            sampled = tokens[batch, token, head]  # (b, q, h, points, v)
            out = out + (sampled * (share * inside * weights[:, :, :, level])[..., None]).sum(3)
    return out.flatten(2).to(value.dtype)

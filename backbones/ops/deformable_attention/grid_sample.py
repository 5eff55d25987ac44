"""Multi-scale deformable attention by PyTorch's own bilinear sampling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def may_differ(device_type: str) -> str | None:
    """Why two runs may give different bits, or None."""
    return None if device_type == "cpu" else "PyTorch adds the gradients of grid_sample atomically"


def grid_sample_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`; samples in at least fp32, for 16 bits cannot place a point in a large map."""
    b, _, heads, width = value.shape
    queries = locations.shape[1]
    work = torch.promote_types(value.dtype, torch.float32)
    maps = value.to(work).permute(0, 2, 3, 1).reshape(b * heads, width, -1)  # (b·h, v, s)
    places = (2 * locations.to(work) - 1).transpose(1, 2).flatten(0, 1)  # (b·h, q, maps, points, 2)
    shares = weights.to(work).transpose(1, 2).flatten(0, 1)[:, None]  # (b·h, 1, q, maps, points)
    out = maps.new_zeros(b * heads, width, queries)
    for level, (tokens, (h, w)) in enumerate(zip(maps.split([h * w for h, w in shapes], 2), shapes, strict=True)):
        sampled = F.grid_sample(tokens.unflatten(2, (h, w)), places[:, :, level], align_corners=False)
        out = out + (sampled * shares[:, :, :, level]).sum(-1)
    return out.unflatten(0, (b, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)

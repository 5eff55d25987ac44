"""Multi-scale deformable attention (arXiv 2010.04159) with its projections."""

import math

import torch
from torch import Tensor, nn

from backbones.ops import deformable_attention


class DeformableAttention(nn.Module):
    """Queries that choose where to look: `deformable_attention` between its projections.

    Args:
        dims: Width of queries and output.
        num_heads: Heads; divides the width of the values.
        num_levels: Maps to read from.
        num_points: Points a head and map.
        value_ratio: Width of the values as a share of ``dims``.

    Raises:
        ValueError: The width of the values is no multiple of the heads.
    """

    def __init__(self, dims: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float):
        super().__init__()
        values = int(dims * value_ratio)
        if values % num_heads or not values:
            raise ValueError(
                f"num_heads={num_heads} must divide the width of the values, {values} ({dims} times {value_ratio})"
            )
        self.sizes = (num_heads, num_levels, num_points)
        self.value_proj = nn.Linear(dims, values)
        self.sampling_offsets = nn.Linear(dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dims, num_heads * num_levels * num_points)
        self.output_proj = nn.Linear(values, dims)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        for linear in (self.value_proj, self.output_proj, self.attention_weights):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.sampling_offsets.weight)
        # The heads look in all directions, point i at i pixels.
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(num_heads, num_levels, num_points, 2).flatten())

    def forward(self, query: Tensor, value: Tensor, shapes: list[tuple[int, int]], points: Tensor) -> Tensor:
        """Reads around a point for each query.

        Args:
            query: `(b, q, dims)`.
            value: `(b, s, dims)`, the tokens of all maps.
            shapes: (height, width) of each map.
            points: `(q, 2)`, x and y as shares of the maps' sides.

        Returns:
            `(b, q, dims)`.
        """
        heads, levels, count = self.sizes
        value = self.value_proj(value).unflatten(2, (heads, -1))
        # Places in fp32: 16 bits cannot tell neighbours apart on a large map.
        offsets = self.sampling_offsets(query).float().unflatten(2, (heads, levels, count, 2))
        # Side by side as numbers: an exported program keeps them open.
        shares = [
            torch.stack((offset[..., 0] / w, offset[..., 1] / h), -1)
            for offset, (h, w) in zip(offsets.unbind(3), shapes, strict=True)
        ]
        locations = points[:, None, None, None] + torch.stack(shares, 3)
        weights = self.attention_weights(query).unflatten(2, (heads, levels * count)).float().softmax(-1)
        weights = weights.unflatten(3, (levels, count))
        return self.output_proj(deformable_attention(value, shapes, locations, weights).to(query.dtype))

"""An adapter that talks to a plain backbone while it runs, in the spirit of ViT-Adapter (arXiv 2205.08534).

A light convolutional branch, the spatial prior, sees the image at four scales. Before each group of blocks the prior
is injected into the image tokens, after it the prior extracts from them, both by multi-scale deformable attention.
The blocks are not touched: they read their sequence as ever, only the residual stream between groups has something
added. The gates of what is added start at zero, so that a pre-trained backbone starts as it was.
"""

import itertools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.adapters.adapted import Adapter
from backbones.adapters.simple_fpn import ConvNorm
from backbones.defocus import DefocusBackbone
from backbones.layers.deformable_attention import DeformableAttention
from backbones.layers.norms import LayerNorm, LayerNorm2d
from backbones.ops.exported import take_first

# Scales, as multiples of the backbone's stride, whose tokens take part; the finest is too long a sequence.
LEVELS = (0.5, 1.0, 2.0)


class InteractionAdapter(Adapter):
    """Strides 4, 8, 16, 32, ... from a convolutional prior that exchanges with a backbone of stride 16.

    Args:
        in_channels: Width of the backbone, a multiple of ``num_heads``.
        out_channels: Channels of every output, by a 1×1 and a 3×3 convolution; None leaves ``in_channels`` and
            convolves nothing.
        num_outs: Number of outputs; beyond stride 32 each subsamples the one before.
        start_level: The finest output: 0 for stride 4, 1 for 8, 2 for 16, 3 for 32. Stock DINO takes 1.
        num_groups: Groups of blocks, each with an exchange. Built by `fit`, one for each of the backbone's
            ``out_indices``, which ends it.
        patch_size: Stride of the backbone, a power of two from 4 on.
        image_channels: Channels of the image.
        prior_dims: Channels of the prior at its finest scale.
        num_heads: Heads of the deformable attention.
        num_points: Points that a head reads from a map.
        value_ratio: Width of the attention's values as a share of ``in_channels``.
        ffn_ratio: Width of the prior's feed-forward as a share of ``in_channels``.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        num_outs: int = 4,
        start_level: int = 0,
        num_groups: int = 4,
        patch_size: int = 16,
        image_channels: int = 3,
        prior_dims: int = 64,
        num_heads: int = 12,
        num_points: int = 4,
        value_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
    ):
        super().__init__()
        if num_outs < 1:
            raise ValueError(f"num_outs must be at least 1, got {num_outs}")
        if start_level not in range(4):
            raise ValueError(f"start_level must be 0 (stride 4) to 3 (stride 32), got {start_level}")
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        self.patch_size = patch_size
        self.prior = SpatialPrior(image_channels, prior_dims, in_channels, patch_size, finest=start_level == 0)
        self.level_embed = nn.Parameter(torch.empty(len(LEVELS), in_channels))
        nn.init.trunc_normal_(self.level_embed, std=0.02)
        attention = dict(num_heads=num_heads, num_points=num_points, value_ratio=value_ratio)
        self.injectors = nn.ModuleList(Injector(in_channels, **attention) for _ in range(num_groups))
        self.extractors = nn.ModuleList(Extractor(in_channels, ffn_ratio, **attention) for _ in range(num_groups))
        # What of the four scales of the prior becomes an output.
        self.used = range(start_level, min(start_level + num_outs, 4))
        if start_level == 0:
            self.finest = nn.ConvTranspose2d(in_channels, in_channels, 2, 2)
        self.norms = nn.ModuleList(LayerNorm2d(in_channels) for _ in self.used)
        self.projections = nn.ModuleList(
            nn.Identity()
            if out_channels is None
            else nn.Sequential(ConvNorm(in_channels, out_channels, 1), ConvNorm(out_channels, out_channels, 3))
            for _ in self.used
        )
        self.out_channels = (out_channels or in_channels,) * num_outs
        self.scales = tuple(0.25 * 2**i for i in range(start_level, start_level + num_outs))

    @staticmethod
    def read_settings(net: DefocusBackbone) -> dict[str, Any]:
        """Arguments of the constructor that follow from the backbone: width, groups, stride, channels of the image."""
        return dict(
            in_channels=net.embed_dims,
            num_groups=len(net.out_indices),
            patch_size=net.patch_size,
            image_channels=net.patch_embed.conv.in_channels,
        )

    def check(self, net: DefocusBackbone) -> None:
        """Raises ValueError if ``out_indices`` do not end the groups, the last at the last block, or strides differ."""
        depth, groups = len(net.blocks), len(self.injectors)
        if len(net.out_indices) != groups or net.out_indices[-1] != depth - 1:
            raise ValueError(
                f"InteractionAdapter of {groups} groups needs out_indices that end each of them, the last being "
                f"{depth - 1}, got out_indices={net.out_indices}: set out_indices, or num_groups, to fit"
            )
        if net.patch_size != self.patch_size:
            raise ValueError(
                f"InteractionAdapter was built for patch_size={self.patch_size}, the backbone has {net.patch_size}"
            )

    def adapt(self, net: DefocusBackbone, x: Tensor) -> tuple[Tensor, ...]:
        """The pyramid of the images ``x``.

        Args:
            net: The backbone.
            x: `(b, c, H, W)`.

        Returns:
            ``num_outs`` maps, finest first: for a backbone's map of (rows, columns) four times as large, twice as
            large, as large, half as large (rounded up), and so on.
        """
        sequence, grid = net.tokenize(x)
        finest, *maps = self.prior(x)
        shapes = [m.shape[-2:] for m in maps]
        prior = torch.cat([m.flatten(2).mT + e for m, e in zip(maps, self.level_embed, strict=True)], 1)

        # Where the tokens lie on the other side's maps: both as shares, the prior's maps reaching further where the
        # image was padded to their stride.
        own, prior_shape = (grid.rows, grid.columns), shapes[1]
        on_prior = _centres(own, own, prior_shape, x.device)
        on_backbone = torch.cat([_centres(shape, prior_shape, own, x.device) for shape in shapes])

        start = 0
        for injector, extractor, index in zip(self.injectors, self.extractors, net.out_indices, strict=True):
            injected = injector(grid.to_map(sequence), prior, shapes, on_prior)
            sequence = net.run_blocks(sequence + grid.to_sequence(injected), start, index + 1)
            prior = extractor(prior, shapes, grid.to_map(sequence), on_backbone)
            start = index + 1

        last = grid.to_map(net.norm(sequence))
        maps = [t.mT.unflatten(2, shape) for t, shape in zip(prior.split([h * w for h, w in shapes], 1), shapes)]
        if finest is not None:
            finest = finest + self.finest(maps[0])
        maps = [finest, *maps]
        outs = []
        for i, scale, norm, projection in zip(self.used, self.scales, self.norms, self.projections):
            h, w = (_scaled(side, scale) for side in (grid.rows, grid.columns))
            resized = F.interpolate(last, (h, w), mode="bilinear", align_corners=False)
            outs.append(projection(norm(take_first(take_first(maps[i], 2, h), 3, w) + resized)))
        while len(outs) < len(self.scales):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


class SpatialPrior(nn.Module):
    """Convolutions over the image: maps of a quarter, half, one and two backbone strides, all ``out_channels`` wide.

    Args:
        in_channels: Channels of the image.
        dims: Channels at the finest scale; the next have two, four and four times as many.
        out_channels: Channels of every map.
        patch_size: The backbone's stride, a power of two from 4 on.
        finest: Whether the finest map is wanted; without it there is None in its place.

    Raises:
        ValueError: ``patch_size`` is no power of two from 4 on.
    """

    def __init__(self, in_channels: int, dims: int, out_channels: int, patch_size: int, finest: bool = True):
        super().__init__()
        if patch_size < 4 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size must be a power of two, at least 4, got {patch_size}")
        self.multiple = 2 * patch_size
        stem, channels = [], in_channels
        for stride in (*(2,) * (patch_size.bit_length() - 3), 1):
            stem.append(_conv_norm_gelu(channels, dims, stride))
            channels = dims
        widths = [dims, 2 * dims, 4 * dims, 4 * dims]
        self.stages = nn.ModuleList([nn.Sequential(*stem)])
        self.stages.extend(_conv_norm_gelu(c, d, 2) for c, d in itertools.pairwise(widths))
        # A place without a module is one without a map.
        projections: list[Any] = [
            nn.Conv2d(width, out_channels, 1) if finest or i else None for i, width in enumerate(widths)
        ]
        self.projections = nn.ModuleList(projections)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        """Maps of `(b, c, H, W)`, finest first; H and W are padded with zeros to twice the backbone's stride."""
        h, w = x.shape[-2:]
        x = F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple)).to(
            cast(nn.Conv2d, self.projections[-1]).weight.dtype
        )
        maps = []
        for stage, projection in zip(self.stages, self.projections, strict=True):
            x = stage(x)
            maps.append(None if projection is None else projection(x))
        return maps


def _conv_norm_gelu(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, LayerNorm2d(out_channels), nn.GELU())


class Injector(nn.Module):
    """What the prior has to say to each image token; nothing at the start.

    Args:
        dims: Channels of tokens and prior.
        **attention: Heads, points and width of the values, as of `DeformableAttention`.
    """

    def __init__(self, dims: int, **attention):
        super().__init__()
        self.query_norm = LayerNorm(dims)
        self.value_norm = LayerNorm(dims)
        self.attention = DeformableAttention(dims, num_levels=len(LEVELS), **attention)
        self.gate = nn.Parameter(torch.zeros(dims))

    def forward(self, x: Tensor, prior: Tensor, shapes: list[tuple[int, int]], points: Tensor) -> Tensor:
        """What to add to the backbone's map, in its dtype.

        Args:
            x: The map, `(b, c, rows, columns)`.
            prior: The prior's tokens, `(b, s, c)`.
            shapes: (height, width) of each of the prior's maps; the areas sum to s.
            points: Where the map's tokens lie on the prior's maps, `(rows · columns, 2)`, as of `DeformableAttention`.
        """
        query = self.query_norm(x.flatten(2).mT)
        out = self.gate * self.attention(query, self.value_norm(prior), shapes, points)
        return out.to(x.dtype).mT.unflatten(2, x.shape[-2:])


class Extractor(nn.Module):
    """Reads the backbone's map into the prior's tokens, then mixes these among neighbours.

    Args:
        dims: Channels of tokens and prior.
        ffn_ratio: Width of the feed-forward as a share of ``dims``.
        **attention: Heads, points and width of the values, as of `DeformableAttention`.
    """

    def __init__(self, dims: int, ffn_ratio: float, **attention):
        super().__init__()
        self.query_norm = LayerNorm(dims)
        self.value_norm = LayerNorm(dims)
        self.attention = DeformableAttention(dims, num_levels=1, **attention)
        hidden = int(dims * ffn_ratio)
        self.ffn_norm = LayerNorm(dims)
        self.fc1 = nn.Linear(dims, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dims)

    def forward(self, prior: Tensor, shapes: list[tuple[int, int]], x: Tensor, points: Tensor) -> Tensor:
        """The prior `(b, s, c)` after reading the map.

        Args:
            prior: Its tokens before, `(b, s, c)`.
            shapes: (height, width) of each of its maps; the areas sum to s.
            x: The backbone's map, `(b, c, rows, columns)`.
            points: Where the prior's tokens lie on that map, `(s, 2)`, as of `DeformableAttention`.
        """
        value = self.value_norm(x.flatten(2).mT)
        prior = prior + self.attention(self.query_norm(prior), value, [x.shape[-2:]], points)
        hidden = self.fc1(self.ffn_norm(prior))
        maps = [
            self.depthwise(t.mT.unflatten(2, shape)).flatten(2).mT
            for t, shape in zip(hidden.split([h * w for h, w in shapes], 1), shapes, strict=True)
        ]
        return prior + self.fc2(F.gelu(torch.cat(maps, 1)))


def _scaled(side: int, scale: float) -> int:
    """``side / scale`` rounded up, in whole numbers; ``scale`` is a power of two."""
    return side * int(1 / scale) if scale < 1 else (side + int(scale) - 1) // int(scale)


def _centres(shape: tuple[int, int], of: tuple[int, int], to: tuple[int, int], device: torch.device) -> Tensor:
    """Where the centres of a map's pixels lie on a map that reaches further, or less far.

    Args:
        shape: (height, width) of the map.
        of: (height, width) of the map's reach.
        to: The other's reach, in the same unit.
        device: Where the result is wanted.

    Returns:
        Row by row, as shares of the other's sides: `(h·w, 2)`, x and y.
    """
    h, w = shape
    # Sides as numbers, never as tensors of them: an exported program keeps them open.
    y = (torch.arange(h, device=device) + 0.5) * (of[0] / (h * to[0]))
    x = (torch.arange(w, device=device) + 0.5) * (of[1] / (w * to[1]))
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)

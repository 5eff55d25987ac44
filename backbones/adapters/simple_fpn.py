"""The simple feature pyramid of plain backbones (arXiv 2203.16527): one map to many scales."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.adapters.adapted import Adapter
from backbones.layers.norms import LayerNorm2d


class ConvNorm(nn.Module):
    """A convolution without bias and a norm over channels, named as in the released checkpoints.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd, so that the map keeps its sides.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm_layer = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, in_channels, h, w)` to `(b, out_channels, h, w)`, contiguous."""
        return self.norm_layer(self.conv(x))


class SimpleFPN(Adapter):
    """Strides 4, 8, 16, 32, ... from the last map of a plain backbone of stride 16.

    Args:
        in_channels: Channels of that map, a multiple of 4.
        out_channels: Channels of every output.
        num_outs: Number of outputs; beyond stride 32 each subsamples the one before.
        start_level: The finest output: 0 for stride 4, 1 for 8, 2 for 16, 3 for 32. Stock DINO, whose scales are 8 to
            64, takes 1.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, num_outs: int = 4, start_level: int = 0):
        super().__init__()
        if not isinstance(in_channels, int) or in_channels < 4 or in_channels % 4:
            raise ValueError(f"in_channels must be one positive multiple of 4, got {in_channels!r}")
        if num_outs < 1:
            raise ValueError(f"num_outs must be at least 1, got {num_outs}")
        if start_level not in range(4):
            raise ValueError(f"start_level must be 0 (stride 4) to 3 (stride 32), got {start_level}")
        self.out_channels = (out_channels,) * num_outs
        self.scales = tuple(0.25 * 2**i for i in range(start_level, start_level + num_outs))
        used = slice(start_level, start_level + num_outs)
        half, quarter = in_channels // 2, in_channels // 4
        levels = [
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, 2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ),
            nn.Sequential(nn.ConvTranspose2d(in_channels, half, 2, 2)),
            nn.Identity(),
            Halve(),
        ]
        self._levels = [f"fpn{i}" for i in range(1, 5)][used]
        for name, level in zip(self._levels, levels[used], strict=True):
            self.add_module(name, level)
        channels = [quarter, half, in_channels, in_channels][used]
        self.lateral_convs = nn.ModuleList(ConvNorm(c, out_channels, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(ConvNorm(out_channels, out_channels, 3) for _ in channels)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Pyramid of the last map.

        Args:
            inputs: The backbone's output: a tuple of maps, of which the last is used, or one map `(b, c, h, w)`.

        Returns:
            ``num_outs`` maps `(b, out_channels, ·, ·)`, finest first.
        """
        x = inputs if isinstance(inputs, Tensor) else inputs[-1]
        outs = [
            fpn_conv(lateral_conv(getattr(self, level)(x)))
            for level, lateral_conv, fpn_conv in zip(self._levels, self.lateral_convs, self.fpn_convs, strict=True)
        ]
        while len(outs) < len(self.scales):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


class Halve(nn.Module):
    """Max-pool 2 that leaves a side of one pixel at one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """`(b, c, h, w)` to `(b, c, max(h // 2, 1), max(w // 2, 1))`."""
        # By padding, for the kernel of an exported program is the same for all sizes.
        missing = [torch.sym_max(2 - side, 0) for side in x.shape[-2:]]
        return F.max_pool2d(F.pad(x, (0, missing[1], 0, missing[0]), value=-math.inf), 2)

"""Four scales from four depths of a plain backbone, as UPerNet expects them."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.adapters.adapted import Adapter
from backbones.adapters.simple_fpn import ConvNorm, Halve
from backbones.defocus import DefocusBackbone
from backbones.layers.norms import LayerNorm2d

TAPS = 4


def tap_indices(depth: int, taps: int = TAPS) -> tuple[int, ...]:
    """Evenly spaced blocks, the last one among them: (5, 11, 17, 23) of 24.

    Raises:
        ValueError: There are fewer blocks than taps.
    """
    if not 1 <= taps <= depth:
        raise ValueError(f"taps must be 1 to {depth}, the number of blocks, got {taps}")
    return tuple((i + 1) * depth // taps - 1 for i in range(taps))


class TapPyramid(Adapter):
    """Strides 4, 8, 16, 32, ... from as many maps of stride 16: the shallower the block, the finer its scale.

    Each tap has its own norm, for the residual stream grows with depth; then two, one and no deconvolutions, and a
    max-pool.

    Args:
        in_channels: Channels of each tap.
        out_channels: Channels of every output, by a 1×1 and a 3×3 convolution; None leaves ``in_channels`` and
            convolves nothing.
        num_outs: Number of outputs; beyond stride 32 each subsamples the one before.
        start_level: The finest output: 0 for stride 4 and four taps, 1 for 8 and three, 2 for 16, 3 for 32.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, num_outs: int = TAPS, start_level: int = 0):
        super().__init__()
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels must be one positive number, that of every tap, got {in_channels!r}")
        if start_level not in range(TAPS):
            raise ValueError(f"start_level must be 0 (stride 4) to {TAPS - 1} (stride 32), got {start_level}")
        self.taps = TAPS - start_level
        if num_outs < self.taps:
            raise ValueError(f"num_outs must be at least {self.taps}, got {num_outs}")
        self.norms = nn.ModuleList(LayerNorm2d(in_channels) for _ in range(self.taps))
        self.resamples = nn.ModuleList(
            (
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                    LayerNorm2d(in_channels),
                    nn.GELU(),
                    nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                ),
                nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                nn.Identity(),
                Halve(),
            )[start_level:]
        )
        self.projections = nn.ModuleList(
            nn.Identity()
            if out_channels is None
            else nn.Sequential(ConvNorm(in_channels, out_channels, 1), ConvNorm(out_channels, out_channels, 3))
            for _ in range(self.taps)
        )
        self.out_channels = (out_channels or in_channels,) * num_outs
        self.scales = tuple(0.25 * 2**i for i in range(start_level, start_level + num_outs))

    def check(self, net: DefocusBackbone) -> None:
        """Raises ValueError if ``net`` gives more or fewer maps than there are taps."""
        depth, taps = len(net.blocks), self.taps
        if len(net.out_indices) != taps:
            cure = (
                f"out_indices={tap_indices(depth, taps)}" if depth >= taps else f"a backbone of at least {taps} blocks"
            )
            raise ValueError(
                f"TapPyramid takes {taps} maps, the backbone gives {len(net.out_indices)} "
                f"(out_indices={net.out_indices}): use {cure}"
            )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``num_outs`` maps, finest first, from one of the backbone's for each tap.

        Raises:
            ValueError: There are more or fewer.
        """
        taps = self.taps
        if len(inputs) != taps:
            raise ValueError(f"TapPyramid takes {taps} maps, got {len(inputs)}: give the backbone {taps} out_indices")
        outs = [
            projection(resample(norm(x)))
            for x, norm, resample, projection in zip(inputs, self.norms, self.resamples, self.projections, strict=True)
        ]
        while len(outs) < len(self.scales):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)

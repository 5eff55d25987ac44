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
    """Strides 4, 8, 16, 32, ... from four maps of stride 16: the shallower the block, the finer its scale.

    Each tap has its own norm, for the residual stream grows with depth; then two, one and no deconvolutions, and a
    max-pool.

    Args:
        in_channels: Channels of each tap.
        out_channels: Channels of every output, by a 1×1 and a 3×3 convolution; None leaves ``in_channels`` and
            convolves nothing.
        num_outs: Number of outputs; beyond stride 32 each subsamples the one before.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, num_outs: int = TAPS):
        super().__init__()
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels must be one positive number, that of every tap, got {in_channels!r}")
        if num_outs < TAPS:
            raise ValueError(f"num_outs must be at least {TAPS}, got {num_outs}")
        self.norms = nn.ModuleList(LayerNorm2d(in_channels) for _ in range(TAPS))
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
            )
        )
        self.projections = nn.ModuleList(
            nn.Identity()
            if out_channels is None
            else nn.Sequential(ConvNorm(in_channels, out_channels, 1), ConvNorm(out_channels, out_channels, 3))
            for _ in range(TAPS)
        )
        self.out_channels = (out_channels or in_channels,) * num_outs
        self.scales = tuple(0.25 * 2**i for i in range(num_outs))

    def check(self, net: DefocusBackbone) -> None:
        depth = len(net.blocks)
        if len(net.out_indices) != TAPS:
            cure = f"out_indices={tap_indices(depth)}" if depth >= TAPS else f"a backbone of at least {TAPS} blocks"
            raise ValueError(
                f"TapPyramid takes {TAPS} maps, the backbone gives {len(net.out_indices)} "
                f"(out_indices={net.out_indices}): use {cure}"
            )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``num_outs`` maps, finest first, from the backbone's four.

        Raises:
            ValueError: There are not four.
        """
        if len(inputs) != TAPS:
            raise ValueError(f"TapPyramid takes {TAPS} maps, got {len(inputs)}: give the backbone {TAPS} out_indices")
        outs = [
            projection(resample(norm(x)))
            for x, norm, resample, projection in zip(inputs, self.norms, self.resamples, self.projections, strict=True)
        ]
        while len(outs) < len(self.scales):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)

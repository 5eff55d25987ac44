"""Images of any size to a grid of patch embeddings."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Pads right and bottom with zeros, then embeds each patch.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels of an embedding.
        patch_size: Side of a patch in pixels.
        name: What the convolution is called in checkpoints.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, name: str = "projection"):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(in_channels, embed_dims, patch_size, patch_size))

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution, whatever it is called."""
        return getattr(self, self.name)

    def forward(self, x: Tensor, multiple: tuple[int, int]) -> Tensor:
        """Embeds `(b, c, H, W)`, its sides first padded to ``multiple``, as `(b, h, w, embed_dims)`."""
        height, width = x.shape[-2:]
        # Written so that an exported program sees the padded sides to be multiples, whatever the image.
        rows, columns = ((side + m - 1) // m * m for side, m in zip((height, width), multiple, strict=True))
        x = F.pad(x, (0, columns - width, 0, rows - height))
        return self.conv(x.to(self.conv.weight.dtype)).permute(0, 2, 3, 1)

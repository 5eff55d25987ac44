"""Images of any size to a grid of patch embeddings."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Pads right and bottom with zeros, then embeds each patch.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels of an embedding.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)

    def forward(self, x: Tensor, multiple: tuple[int, int]) -> Tensor:
        """Embeds `(b, c, H, W)`, its sides first padded to ``multiple``, as `(b, h, w, embed_dims)`."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % multiple[1], 0, -height % multiple[0]))
        return self.projection(x.to(self.projection.weight.dtype)).permute(0, 2, 3, 1)

"""DINO's reference head as the released detectors have it, for detrex and for the original mmdet.

Imports no framework.
"""

import functools
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.defocus import DefocusBackbone


class ReferenceHead(nn.Module):
    """The queries' positions from their boxes, as OneDL's mmdet computes them in DINO.

    detrex and the original mmdet hand over an encoding of half as many frequencies, and of 256 channels whatever a
    query has. The boxes' coordinates are read back from one of its frequencies and encoded anew.

    Args:
        dims: Channels of a query; the encoding has as many for each of the four coordinates.
    """

    # Of the encoding that comes: 128 channels a coordinate, sine and cosine by turns, angles 2π·x / 10000^(2i / 128).
    _CHANNELS = 128
    # The first frequency whose angles stay below π for coordinates up to 1, where sine and cosine tell the angle.
    _PAIR = 5

    def __init__(self, dims: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 * dims, dims), nn.Linear(dims, dims)])

    def forward(self, encoded: Tensor) -> Tensor:
        """Positions `(b, n, dims)` of the encoding `(b, n, 512)`."""
        sine, cosine = (
            encoded.float().unflatten(-1, (4, self._CHANNELS))[..., 2 * self._PAIR : 2 * self._PAIR + 2].unbind(-1)
        )
        angles = torch.atan2(sine, cosine) * 10000 ** (2 * self._PAIR / self._CHANNELS)
        dims = self.layers[1].in_features
        rates = 10000 ** (torch.arange(0, dims, 2, device=encoded.device) / dims)
        angles = angles[..., None] / rates
        wide = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(2).to(self.layers[0].weight.dtype)
        return self.layers[1](F.relu(self.layers[0](wide)))


def widen_reference_heads() -> None:
    """Lets the original mmdet's DINO take `ReferenceHead` where its backbone is ours; other detectors stay as they are.

    The head of mmdet 3.3.0 has half the channels of the released detectors' and of OneDL's mmdet, and works with
    queries of 256 channels only. Does nothing where mmdet's DINO is not imported, or was changed already.
    """
    module = sys.modules.get("mmdet.models.detectors.dino")
    if module is None or hasattr(module.DINO._init_layers, "__wrapped__"):
        return
    make = module.DINO._init_layers

    @functools.wraps(make)
    def make_wide(detector: nn.Module) -> None:
        make(detector)
        decoder, dims = detector.decoder, detector.embed_dims
        ours = any(isinstance(part, DefocusBackbone) for part in detector.backbone.modules())
        narrow = (
            type(decoder) is module.DinoTransformerDecoder and decoder.ref_point_head.layers[0].in_features == 2 * dims
        )
        if ours and narrow:
            decoder.ref_point_head = ReferenceHead(dims)

    module.DINO._init_layers = make_wide

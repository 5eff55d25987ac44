"""What detrex' DINO needs to be the published one: a pyramid as its neck, mmdet's queries, the recipe's rates.

Imports nothing of detrex, whose DINO is in a project of its checkout: configs bring both together.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MapList(nn.Module):
    """The maps of a Detectron2 backbone as a list: the neck of a detector whose backbone has a pyramid.

    Args:
        in_features: Names of the maps to take, in this order.
    """

    def __init__(self, in_features: Sequence[str]):
        super().__init__()
        self.in_features = list(in_features)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """The maps named in ``in_features``."""
        return [features[name] for name in self.in_features]


class ReferenceHead(nn.Module):
    """The queries' positions from their boxes, as mmdet's DINO computes them: with twice the frequencies of detrex'.

    detrex hands over its own encoding of the boxes. Their coordinates are read back from one of its frequencies and
    encoded anew, so that released weights fit.

    Args:
        dims: Channels of a query; the encoding has as many for each of the four coordinates.
    """

    # Of detrex' encoding: 128 channels a coordinate, sine and cosine by turns, angles 2π·x / 10000^(2i / 128).
    _CHANNELS = 128
    # The first frequency whose angles stay below π for coordinates up to 1, where sine and cosine tell the angle.
    _PAIR = 5

    def __init__(self, dims: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4 * dims, dims), nn.Linear(dims, dims)])

    def forward(self, encoded: Tensor) -> Tensor:
        """Positions `(b, n, dims)` of detrex' encoding `(b, n, 512)`."""
        sine, cosine = (
            encoded.float().unflatten(-1, (4, self._CHANNELS))[..., 2 * self._PAIR : 2 * self._PAIR + 2].unbind(-1)
        )
        angles = torch.atan2(sine, cosine) * 10000 ** (2 * self._PAIR / self._CHANNELS)
        dims = self.layers[1].in_features
        rates = 10000 ** (torch.arange(0, dims, 2, device=encoded.device) / dims)
        angles = angles[..., None] / rates
        wide = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(2).to(self.layers[0].weight.dtype)
        return self.layers[1](F.relu(self.layers[0](wide)))


def with_reference_head(decoder: nn.Module) -> nn.Module:
    """detrex' DINO decoder with `ReferenceHead`, which released weights need."""
    decoder.ref_point_head = ReferenceHead(decoder.norm.normalized_shape[0])
    return decoder


def get_dino_lr_factor(name: str, backbone: float = 0.1, offsets: float = 0.1) -> float:
    """The published recipe's factors on the learning rate of DINO's parameters.

    Args:
        name: A parameter's name in detrex' DINO.
        backbone: Factor of the backbone; its pyramid, which is the neck under mmdet, has 1.
        offsets: Factor of sampling offsets and reference points.
    """
    if name.startswith("backbone.net."):
        return backbone
    return offsets if "sampling_offsets" in name or "reference_points" in name else 1.0

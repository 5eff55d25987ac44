"""What detrex' DINO needs to be the published one: a pyramid as its neck, mmdet's queries, the recipe's rates.

Imports nothing of detrex, whose DINO is in a project of its checkout: configs bring both together.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from backbones.integrations.reference_head import ReferenceHead


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

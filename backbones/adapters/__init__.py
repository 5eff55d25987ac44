"""From a plain backbone to the scales that heads expect."""

from backbones.adapters.adapted import AdaptedBackbone, Adapter
from backbones.adapters.interaction import InteractionAdapter
from backbones.adapters.simple_fpn import SimpleFPN
from backbones.adapters.tap_pyramid import TapPyramid, tap_indices

__all__ = ["AdaptedBackbone", "Adapter", "InteractionAdapter", "SimpleFPN", "TapPyramid", "tap_indices"]

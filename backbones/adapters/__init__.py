"""From the backbone's maps to the scales that heads expect."""

from backbones.adapters.simple_fpn import SimpleFPN

__all__ = ["SimpleFPN"]

"""Token mixers, one file each: sizes, mixer, block."""

from backbones.mixers.mamba import MambaBlock
from backbones.mixers.retnet import RetNetBlock
from backbones.mixers.vit import ViTBlock

__all__ = ["MambaBlock", "RetNetBlock", "ViTBlock"]

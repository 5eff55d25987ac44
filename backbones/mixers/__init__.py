"""Token mixers: one file each."""

from backbones.mixers.mamba import MambaArch, MambaBlock

__all__ = ["MambaArch", "MambaBlock"]

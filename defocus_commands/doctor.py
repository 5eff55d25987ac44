"""Says what this machine has, which kernels run on it, whether they are right and how fast."""

from backbones.doctor.__main__ import main

__all__ = ["main"]

"""De-focus Attention Networks as backbones for dense prediction.

Importing this package registers its modules into the frameworks that are installed.
"""

from backbones.adapters import AdaptedBackbone, InteractionAdapter, SimpleFPN, TapPyramid
from backbones.defocus import DefocusBackbone, DefocusMamba, DefocusRetNet, DefocusViT

__all__ = [
    "AdaptedBackbone",
    "DefocusBackbone",
    "DefocusMamba",
    "DefocusRetNet",
    "DefocusViT",
    "InteractionAdapter",
    "SimpleFPN",
    "TapPyramid",
]
__version__ = "0.1.0"

from backbones.integrations import register_installed

register_installed()

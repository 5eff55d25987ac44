"""De-focus Attention Networks as backbones for dense prediction.

Importing this package registers its modules into the frameworks that are installed.
"""

from backbones.adapters import AdaptedBackbone, InteractionAdapter, SimpleFPN, TapPyramid
from backbones.defocus import DefocusBackbone, DefocusMamba, DefocusRetNet, DefocusViT
from backbones.model_zoo import config_file, config_files

__all__ = [
    "AdaptedBackbone",
    "DefocusBackbone",
    "DefocusMamba",
    "DefocusRetNet",
    "DefocusViT",
    "InteractionAdapter",
    "SimpleFPN",
    "TapPyramid",
    "config_file",
    "config_files",
]
__version__ = "0.1.0"

from backbones.integrations import register_installed

register_installed()

"""De-focus Attention Networks as backbones for dense prediction.

Importing this package registers its modules into the frameworks that are installed.
"""

from backbones.adapters import SimpleFPN
from backbones.defocus import DefocusBackbone, DefocusMamba, DefocusRetNet, DefocusViT

__all__ = ["DefocusBackbone", "DefocusMamba", "DefocusRetNet", "DefocusViT", "SimpleFPN"]
__version__ = "0.1.0"

from backbones.integrations import register_installed

register_installed()

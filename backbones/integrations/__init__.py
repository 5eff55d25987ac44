"""The only place that imports other frameworks; each is optional."""

import importlib
import importlib.util

_FRAMEWORKS = {"mmengine": "openmmlab", "timm": "timm"}


def register_installed() -> None:
    """Registers into every framework that is installed; what is absent costs one look-up."""
    for package, module in _FRAMEWORKS.items():
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(f"backbones.integrations.{module}")

"""The only place that imports other frameworks; each is optional."""

import importlib
import importlib.util
import logging

from backbones.integrations.frameworks import FrameworkError, stand_in

_FRAMEWORKS = {"mmengine": "openmmlab", "timm": "timm"}
logger = logging.getLogger("backbones")


def register_installed() -> None:
    """Registers into every framework that is installed; what is absent costs one look-up.

    One that is too old or broken does not disturb those who do not use it. Asked for a De-focus model it says why it
    has none.
    """
    for package, module in _FRAMEWORKS.items():
        if importlib.util.find_spec(package) is None:
            continue
        try:
            importlib.import_module(f"backbones.integrations.{module}")
        except FrameworkError as error:
            logger.info("%s", error)
            stand_in(package, error)

"""What an integration says where its framework is too old or broken, and what stands in for it then."""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from importlib import metadata

from backbones.defocus import FAMILIES

ADAPTERS = ("SimpleFPN", "TapPyramid", "InteractionAdapter", "AdaptedBackbone")
# The first version of each package that the integrations work with; pyproject.toml's extras ask for as much or more.
OLDEST = {
    "accelerate": "1.7.0",
    "detectron2": "0.6",
    "gradio": "6.0.0",
    "mmdet": "3.0.0",
    "mmengine": "0.10.0",
    "mmseg": "1.0.0",
    "onnx": "1.23",
    "onnxruntime": "1.32",
    "onnxscript": "0.7",
    "openvino": "2026.4",
    "timm": "1.0.3",
    "transformers": "5.24.0",
}


class FrameworkError(ImportError):
    """A framework that is installed and cannot be used; the message names the version found and the one needed."""


@contextlib.contextmanager
def needed(package: str) -> Iterator[None]:
    """Around an integration's imports of its framework, whose failures become one clear error.

    Args:
        package: The framework, by the name that it is imported by, as in ``OLDEST``.

    Raises:
        FrameworkError: The framework is absent, older, or something in it cannot be imported.
    """
    oldest = OLDEST[package]
    try:
        found = getattr(importlib.import_module(package), "__version__", "of no version")
        if _numbers(found) >= _numbers(oldest):
            yield
            return
        problem = f"{package} {found} is installed"
    # What is broken raises anything: an AttributeError of its own, an OSError of a library that it loads.
    except Exception as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "backbones":
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise FrameworkError(
                f"{package} is not installed; De-focus models need {package} {oldest} or newer"
            ) from error
        reason = f"{type(error).__name__}: {error}"
        problem = f"{package} {_installed(package)} cannot be used as it is installed ({reason})"
        raise FrameworkError(f"{problem}; De-focus models need {package} {oldest} or newer, and whole") from error
    raise FrameworkError(f"{problem}; De-focus models need {package} {oldest} or newer")


def stand_in(package: str, error: FrameworkError) -> None:
    """Registers functions that raise ``error`` under the names that the framework's users ask for."""
    with contextlib.suppress(Exception):
        _STAND_INS[package](error)


def timm_names() -> Iterator[tuple[str, str, str]]:
    """(timm's name, family, arch) of every row in every family's table."""
    for name, family in FAMILIES.items():
        for arch in family.block.archs:
            yield f"defocus_{name.removeprefix('Defocus').lower()}_{arch}", name, arch


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _installed(package: str) -> str:
    """Version of what is installed, without importing it."""
    names = metadata.packages_distributions().get(package, ())
    return ", ".join(metadata.version(name) for name in names) or "of no version"


def _refusing(name: str, error: FrameworkError) -> Callable:
    def create(*_, **__):
        raise FrameworkError(str(error)) from error

    create.__name__ = create.__qualname__ = name
    return create


def _stand_in_timm(error: FrameworkError) -> None:
    from timm.models import register_model

    for name, _, _ in timm_names():
        register_model(_refusing(name, error))


def _stand_in_mmengine(error: FrameworkError) -> None:
    from mmengine.registry import MODELS

    for name in (*FAMILIES, *ADAPTERS):
        MODELS.register_module(name=name, module=_refusing(name, error), force=True)


_STAND_INS = {"timm": _stand_in_timm, "mmengine": _stand_in_mmengine}

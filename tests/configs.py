"""The configs of mmdet and mmseg, each built once for all tests that look at it."""

import importlib
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

MMDET_CONFIGS = sorted(Path("mmdet_configs").glob("*/*.py"))
MMSEG_CONFIGS = sorted(Path("mmseg_configs").glob("*/*.py"))


def build(path: str | Path) -> tuple[Config, torch.nn.Module]:
    """A config and its model, without memory for its weights; both are to be left as they are."""
    return _build(Path(path))


@cache
def _build(path: Path) -> tuple[Config, torch.nn.Module]:
    scope = path.parts[0].removesuffix("_configs")
    registry = importlib.import_module(f"{scope}.registry").MODELS
    config = Config.fromfile(path)
    init_default_scope(scope)
    with torch.device("meta"):
        return config, registry.build(config.model)

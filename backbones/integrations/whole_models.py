"""Detectors and segmentors with their heads and all of their weights, as each framework builds them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.checkpoints import CheckpointError, find_misfits, read_checkpoint, weights_of
from backbones.integrations.frameworks import needed


def model_of_config(
    name: str, checkpoint: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """The model of a config of mmdet or mmseg.

    Args:
        name: File of the config, or its name as "mmdet::dino/NAME.py".
        checkpoint: File of all its weights; None for random ones, of seed 0.
        settings: What differs from the config, as "model.backbone.arch".

    Returns:
        The model in evaluation, its config, and the names of its classes, as far as checkpoint or config tell them.

    Raises:
        ValueError: The config is of neither.
        CheckpointError: The checkpoint cannot be read or is not of this config.
    """
    with needed("mmengine"):
        from mmengine.config import Config
        from mmengine.hub import get_config
        from mmengine.registry import init_default_scope

    config = get_config(name) if "::" in name else Config.fromfile(name)
    config.merge_from_dict(dict(settings or {}))
    scope = config.get("default_scope")
    if scope not in ("mmdet", "mmseg"):
        raise ValueError(f"{name}: default_scope is {scope!r}; only configs of mmdet and mmseg can be built")
    init_default_scope(scope)
    torch.manual_seed(0)
    model = importlib.import_module(f"{scope}.registry").MODELS.build(config.model).eval()
    classes = _classes_of(config)
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        load_whole(model, weights_of(content)[0], checkpoint)
        classes = tuple(content.get("meta", {}).get("dataset_meta", {}).get("classes", ())) or classes
    return model, config, classes


def model_of_folder(folder: Path) -> nn.Module:
    """The model in a folder of transformers' `save_pretrained`, in evaluation, by the class that its config names.

    Raises:
        ValueError: The folder has no config, or it names no class of transformers.
    """
    with needed("transformers"):
        import transformers

        from backbones.integrations import transformers as ours
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no folder of transformers: it has no config.json, as save_pretrained writes it")
    config = transformers.AutoConfig.from_pretrained(folder)
    (kind,) = config.architectures or [None]
    found = next((getattr(package, kind) for package in (transformers, ours) if hasattr(package, kind or "")), None)
    if found is None:
        raise ValueError(f"{folder}: its config.json names {kind or 'no class'}, which is none of transformers'")
    return found.from_pretrained(folder).eval()


def load_whole(model: nn.Module, weights: Mapping[str, Tensor], checkpoint: str) -> None:
    """Loads the weights of a whole detector or segmentor, all of them or none.

    Raises:
        CheckpointError: Names or shapes are not those of the model.
    """
    own, shapes = (
        {name: tuple(value.shape) for name, value in values.items()} for values in (model.state_dict(), weights)
    )
    wrong = zip(("lacks", "has besides", "has in another shape"), find_misfits(shapes, own), strict=True)
    said = [f"{verb} {len(names)} ({', '.join(sorted(names)[:3])})" for verb, names in wrong if names]
    if said:
        raise CheckpointError(
            f"checkpoint {checkpoint} is not of this config, of whose tensors it {'; '.join(said)}: give that "
            "which it was trained with"
        )
    model.load_state_dict(weights)


def _classes_of(config: Any) -> tuple[str, ...]:
    """Names of the classes that a config tells, if it does."""
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    return tuple((dataset.get("metainfo") or {}).get("classes", ()))

"""A network to look at, from what a user names: a checkpoint, a config of mmdet or mmseg, a name of timm."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.checkpoints import (
    CheckpointError,
    classifier_heads,
    describe_backbone,
    describe_heads,
    load_strictly,
    read_backbone,
)
from backbones.classifier import CLASSIFIERS
from backbones.defocus import FAMILIES
from backbones.integrations.frameworks import ADAPTERS, needed, timm_names

# ImageNet's, of pixels from 0 to 255, as most training pipelines have them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# A family that a state dict does not tell, as of a network without decay.
_UNKNOWN = "name it by --model and its arguments by --set, or give the config"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network and how it wants its images.

    Attributes:
        model: The network, in evaluation.
        trained: Whether its weights are a checkpoint's; else they are random, of seed 0.
        about: Where it comes from, in words.
        mean: Of each channel, of pixels from 0 to 255.
        std: The same.
        size: (height, width) of its images; None for any.
    """

    model: nn.Module
    trained: bool
    about: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None


def load_network(
    checkpoint: str | None = None,
    model: str | None = None,
    config: str | None = None,
    settings: Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    container: str | None = None,
    prefix: str | None = None,
) -> LoadedNetwork:
    """Builds a network and loads its weights, strictly.

    Args:
        checkpoint: File of a classifier, detector, segmentor or backbone, of any framework; without one the weights are
            random. A De-focus classifier keeps its heads.
        model: A family ("DefocusMamba"), or a name of timm ("defocus_mamba_base", "resnet50"); None for what config or
            checkpoint tell.
        config: A config of mmdet or mmseg, of whose backbone's arguments ``settings`` change some.
        settings: Arguments of the De-focus backbone or of timm's model.
        size: (height, width) of the images, for models of timm that are built for one size.
        container: As of `weights_of`.
        prefix: As of `backbone_from_checkpoint`.

    Raises:
        ValueError: Neither of the three tells the network, or two contradict each other.
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    settings = dict(settings or {})
    if model is not None and config is not None:
        raise ValueError("--model and --config both name the network: give one of them")
    torch.manual_seed(0)
    names = {name: (family, arch) for name, family, arch in timm_names()}
    if model is not None and model not in names and model not in FAMILIES:
        return _timm_model(model, checkpoint, settings, size)
    mean, std, with_head = MEAN, STD, config is None
    family = None
    if config is not None:
        family, arguments, mean, std = backbone_of_config(config)
        settings = arguments | settings
    elif model is not None:
        family, arch = names.get(model, (model, "base"))
        settings = {"arch": arch} | settings
    elif checkpoint is None:
        raise ValueError("nothing says what the network is: give --checkpoint, --config or --model")
    if checkpoint is None:
        # A name of timm is a classifier's, that of a family a backbone's.
        kind = CLASSIFIERS[family] if model in names else FAMILIES[family]
        return LoadedNetwork(kind(**settings).eval(), False, f"{model or config}, random weights", mean, std)
    loaded = _defocus_model(checkpoint, family, settings, with_head, container, prefix)
    return LoadedNetwork(loaded.eval(), True, str(checkpoint), mean, std)


def read_value(text: str) -> Any:
    """What a user writes behind ``KEY=``: what Python reads it as, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def read_settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` words as a dict; a value is Python's, or a string where it is none.

    Raises:
        ValueError: A word is not of this form.
    """
    settings = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"an argument of the network is KEY=VALUE, as causal=False; got {pair!r}")
        settings[key] = read_value(value)
    return settings


def is_lazy(config: Path) -> bool:
    """Whether a Python file is one of Detectron2's lazy configs: it imports Detectron2, detrex, or its neighbours.

    mmengine's configs name their neighbours by ``_base_`` or inherit them within ``with read_base():``.

    Raises:
        ValueError: The file is no Python.
    """
    try:
        body = ast.parse(config.read_text()).body
    except SyntaxError as error:
        raise ValueError(f"{config} is no config: {error}") from error
    for node in body:
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name.startswith((".", "detectron2", "detrex", "omegaconf")) for name in names):
            return True
    return False


def backbone_of_config(path: str) -> tuple[str, dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    """The De-focus backbone of a config of mmdet or mmseg.

    Args:
        path: The config, which is run as mmengine runs it.

    Returns:
        Its family, its arguments less those of training, and mean and std of the images.

    Raises:
        ValueError: The model has another backbone, or none.
    """
    model = _model_of_config(path)
    backbone = model.get("backbone", {})
    if _name(backbone.get("type")) == "AdaptedBackbone":
        backbone = backbone["net"]
    arguments = dict(backbone)
    family = _name(arguments.pop("type", None))
    if family not in FAMILIES:
        raise ValueError(f"the backbone of {path} is {family or 'missing'}, none of {', '.join(FAMILIES)}")
    for training in ("init_cfg", "drop_path_rate", "frozen_stages", "with_cp"):
        arguments.pop(training, None)
    if isinstance(arguments.get("arch"), dict):
        arguments["arch"] = dict(arguments["arch"])
    images = model.get("data_preprocessor") or {}
    return family, arguments, tuple(images.get("mean") or MEAN), tuple(images.get("std") or STD)


def adapter_of_config(path: str) -> dict[str, Any] | None:
    """The adapter of a config of mmdet or mmseg, its ``type`` and arguments, be it a neck; None if there is none."""
    model = _model_of_config(path)
    for found in (model.get("backbone", {}).get("adapter"), model.get("neck")):
        if isinstance(found, Mapping) and _name(found.get("type")) in ADAPTERS:
            return {**found, "type": _name(found["type"])}
    return None


def _model_of_config(path: str) -> Mapping[str, Any]:
    with needed("mmengine"):
        from mmengine.config import Config
    return Config.fromfile(path).get("model", {})


def _name(kind: Any) -> str:
    """The class that ``type=`` names: a string, perhaps with its scope, or the class itself."""
    return getattr(kind, "__name__", str(kind or "")).rpartition(".")[2]


def _defocus_model(
    checkpoint: str,
    family: str | None,
    settings: dict[str, Any],
    with_head: bool,
    container: str | None,
    prefix: str | None,
) -> nn.Module:
    found = read_backbone(checkpoint, container, prefix)
    kept = found.backbone
    told, sizes = describe_backbone({name: tuple(value.shape) for name, value in kept.items()})
    if family is None:
        if not told:
            raise ValueError(f"checkpoint {checkpoint} does not tell the family of its backbone: {_UNKNOWN}")
        family, settings = told, {"arch": sizes} | settings
    embedding = kept["patch_embed.projection.weight"].shape
    settings = {"patch_size": embedding[-1], "in_channels": embedding[1]} | settings
    heads = classifier_heads(found.weights, prefix) if with_head else {}
    if heads:
        kind, classes = describe_heads(heads)
        model = CLASSIFIERS[family](num_classes=classes, head=kind, **settings)
        kept = {name.replace("patch_embed.projection.", "patch_embed.proj."): kept[name] for name in kept} | heads
    else:
        model = FAMILIES[family](**settings)
    load_strictly(model, kept, f"checkpoint {checkpoint}")
    return model


def _timm_model(
    name: str, checkpoint: str | None, settings: dict[str, Any], size: Sequence[int] | None
) -> LoadedNetwork:
    with needed("timm"):
        import timm
        from timm.models import get_pretrained_cfg, is_model

        from backbones.integrations.timm import size_settings
    if not is_model(name):
        raise ValueError(f"there is no model {name!r}: give one of {', '.join(FAMILIES)}, or a name of timm")
    form = get_pretrained_cfg(name)
    if size is not None:
        settings = size_settings(name, size) | settings
    if checkpoint is not None:
        # As timm's own weights: what a model renames or resamples, such as positions of another size, is done for it.
        overlay = dict(file=str(checkpoint), num_classes=settings.get("num_classes", form.num_classes))
        # In older timm models that were published as arrays of JAX would read any file as such.
        if Path(checkpoint).suffix != ".npz":
            overlay["custom_load"] = False
        settings = settings | dict(pretrained=True, pretrained_cfg_overlay=overlay)
    try:
        model = timm.create_model(name, **settings).eval()
    except (RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[-1].strip()
        raise CheckpointError(f"checkpoint {checkpoint} does not fit timm's {name}: {reason}") from error
    mean, std = (tuple(255 * part for part in parts) for parts in (form.mean, form.std))
    if form.fixed_input_size and size is None:
        size = form.input_size[-2:]
    about = str(checkpoint) if checkpoint else f"{name}, random weights"
    return LoadedNetwork(model, checkpoint is not None, about, mean, std, tuple(size) if size else None)

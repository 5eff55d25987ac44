"""Folders that transformers reads offline, made from weights of any framework: config, weights, image processor."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from backbones.checkpoints import (
    CheckpointError,
    adapter_from_checkpoint,
    backbone_from_checkpoint,
    check_shapes,
    classifier_heads,
    describe_backbone,
    describe_heads,
)
from backbones.integrations.networks import adapter_of_config, backbone_of_config
from backbones.integrations.transformers.config import CONFIGS, DefocusConfig
from backbones.integrations.transformers.modeling import BACKBONES, CLASSIFIERS, build_block


def model_of_weights(
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    prefix: str | None = None,
) -> PreTrainedModel:
    """The model that weights of any framework are of: a classifier with its heads, or a backbone with its adapter.

    Args:
        weights: Name to tensor.
        settings: Fields of the config that weights do not tell, ``section_size`` or ``rope_scale``, and those that
            differ from what they tell. Of ``adapter`` what is given is joined to what the weights tell.
        labels: Names of a classifier's classes.
        prefix: The beginning of the backbone's names, where there are several.

    Returns:
        The model in evaluation, its values and their dtypes those of the weights bit for bit.

    Raises:
        CheckpointError: There is no De-focus backbone whose family can be told, or weights do not fit the settings.
        ValueError: A setting outside its range, or as many labels as there are not classes.
    """
    backbone, _ = backbone_from_checkpoint(weights, prefix)
    heads = classifier_heads(weights, prefix)
    adapter, told = ({}, None) if heads else adapter_from_checkpoint(weights)
    config = _config_of(backbone, heads, dict(settings or {}), told, labels)
    family = config.family.__name__
    # On no device: what initial values would cost is not spent.
    with torch.device("meta"):
        model = (CLASSIFIERS if heads else BACKBONES)[family](config)
    before = f"{model.base_model_prefix}.net." if heads else "net."
    named = {before + name: value for name, value in backbone.items()} | heads
    named |= {f"adapter.{name}": value for name, value in adapter.items()}
    own, shapes = (
        {name: tuple(value.shape) for name, value in values.items()} for values in (model.state_dict(), named)
    )
    if own != shapes:
        check_shapes("the backbone", *_nets(shapes, own, type(model).__name__))
        raise CheckpointError(
            f"adapter or heads do not fit {config.adapter or config.head}: say what differs by settings"
        )
    # Copies, so that the model does not hold on to the whole file; assigned, so that they keep their dtypes.
    model.load_state_dict({name: value.clone() for name, value in named.items()}, assign=True)
    _fill_constants(model)
    return model.eval()


def _fill_constants(model: PreTrainedModel) -> None:
    """Gives buffers that are in no file, those of filters that a network does without, their values."""
    constants = dict(build_block(model.config).named_buffers())
    for block in model.base_model.net.blocks:
        for name, buffer in block.named_buffers():
            if buffer.is_meta:
                owner, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(owner), leaf, constants[name].clone())


def settings_of_config(path: str) -> tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    """What a config of mmdet or mmseg says of a model, as `model_of_weights` takes it, and mean and std of its images.

    Raises:
        ValueError: Its backbone is none of ours.
    """
    family, settings, mean, std = backbone_of_config(path)
    blocks, adapter = settings.pop("out_indices", None), adapter_of_config(path)
    if adapter is not None:
        # A neck's width is its backbone's, which need not be said.
        adapter.pop("in_channels", None)
        settings["adapter"] = adapter if blocks is None else adapter | {"out_indices": list(blocks)}
    elif blocks is not None:
        blocks = [blocks] if isinstance(blocks, int) else blocks
        # Here the stem is counted, too.
        settings["out_indices"] = [index + 1 if index >= 0 else index for index in blocks]
    return settings | {"family": family}, mean, std


def _nets(shapes: Mapping[str, tuple], own: Mapping[str, tuple], model: str) -> tuple[dict, str, dict]:
    """Arguments of `check_shapes` about the plain backbones in two models."""
    theirs, ours = ({n.rpartition("net.")[2]: s for n, s in names.items() if "net." in n} for names in (shapes, own))
    return theirs, model, ours


def _config_of(
    backbone: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    settings: dict[str, Any],
    adapter: dict[str, Any] | None,
    labels: Sequence[str] | None,
) -> DefocusConfig:
    told, sizes = describe_backbone({name: tuple(value.shape) for name, value in backbone.items()})
    family = settings.pop("family", told)
    if family not in CONFIGS:
        raise CheckpointError(
            f"the weights do not tell the family of their backbone: say it as family, one of {', '.join(CONFIGS)}"
        )
    embedding = backbone["patch_embed.projection.weight"].shape
    told = {"arch": _named(family, sizes), "patch_size": embedding[-1], "num_channels": embedding[1]}
    if adapter is not None:
        settings["adapter"] = adapter | (settings.get("adapter") or {})
    if heads:
        told["head"], classes = describe_heads(heads)
        told["num_labels"] = classes
        if labels is not None:
            if len(labels) != classes:
                raise ValueError(f"there are {len(labels)} labels for {classes} classes: give one for each")
            told["id2label"] = dict(enumerate(labels))
            told["label2id"] = {label: i for i, label in enumerate(labels)}
    known = {entry.name for entry in fields(CONFIGS[family]) if not entry.name.startswith("_")}
    known |= {"out_features", "out_indices", "in_channels"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"{CONFIGS[family].__name__} has no {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return CONFIGS[family](**told | settings)


def _named(family: str, sizes: dict[str, Any]) -> str | dict[str, Any]:
    """The name of these sizes in the family's table, or they themselves."""
    for name, arch in CONFIGS[family].family.block.archs.items():
        if all(getattr(arch, key) == value for key, value in sizes.items()):
            return name
    return sizes


def write_folder(model: PreTrainedModel, processor: BaseImageProcessor, out: str | os.PathLike) -> None:
    """Saves a model and its image processor into a folder that is there as a whole or not at all.

    Raises:
        FileExistsError: There is something at ``out``.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: choose another name, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f"{out.name}."))
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        # The temporary folder was for its maker alone.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

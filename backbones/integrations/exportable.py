"""A network to export, from what a user names: a family, a name of timm, a config, a folder of transformers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones import adapters
from backbones.adapters import AdaptedBackbone
from backbones.defocus import DefocusBackbone
from backbones.export import PACKAGE, PROGRAM, Exportable, ExportError, Target, flatten, name_maps, patch_of
from backbones.integrations.frameworks import ADAPTERS
from backbones.integrations.networks import MEAN, STD, load_network
from backbones.integrations.whole_models import model_of_config

PARTS = ("features", "whole")
# Those of frameworks are imported where they are asked for.
FORMATS = {"onnx": "ONNX", "torch": PROGRAM, "aot": PACKAGE, "openvino": "OPENVINO"}
# Side of an image whose maps tell their strides.
_PROBE = 256


def find_target(name: str) -> Target:
    """The format called ``name`` in `FORMATS`."""
    found = FORMATS[name]
    if isinstance(found, str):
        found = getattr(importlib.import_module(f"backbones.integrations.{name}"), found)
    return found


def find_network(
    name: str,
    checkpoint: str | None = None,
    settings: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    part: str = "features",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Exportable:
    """Builds what ``name`` is, with the weights of a checkpoint, to be exported.

    Args:
        name: A family ("DefocusMamba"), a name of timm, a config of mmdet or mmseg, or a folder of transformers'
            `save_pretrained`.
        checkpoint: File of the weights, which have to fit name by name; without one they are random, of seed 0.
        settings: Arguments of the network; of a config what differs, as "model.backbone.arch".
        adapter: Name of one to put on a family's backbone.
        part: Of a config: "features", the maps of backbone and neck, or "whole", with its head.
        size: (height, width) of images, to leave it fixed.
        batch: Images at once, to leave it fixed.

    Raises:
        ExportError: ``name`` is none of these, or the parts do not fit it.
        ValueError: The folder or the config does not tell a model, or the model refuses its arguments.
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    if min(size or (1,)) < 1 or (batch is not None and batch < 1):
        raise ExportError(f"--size and --batch take whole numbers from 1 on, got {size} and {batch}")
    network = _find(name, checkpoint, dict(settings or {}), adapter, part, size)
    return replace(network, batch=batch)


def _find(
    name: str,
    checkpoint: str | None,
    settings: dict[str, Any],
    adapter: str | None,
    part: str,
    size: tuple[int, int] | None,
) -> Exportable:
    if part not in PARTS:
        raise ExportError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if Path(name).is_dir():
        if settings or adapter or checkpoint:
            raise ExportError(f"{name} is a folder of transformers with weights of its own: give it alone")
        from backbones.integrations.exportable_transformers import of_folder

        return of_folder(Path(name), size)
    if name.endswith(".py") or "::" in name:
        if adapter is not None:
            raise ExportError("--adapter is for a family's backbone: a config has its own adapter, or none")
        return _of_config(name, checkpoint, settings, part, size)
    if part == "whole":
        raise ExportError("--part whole is for configs: a family has no head, a classifier of timm comes with its own")
    loaded = load_network(checkpoint, name, settings=settings, size=size)
    common = dict(about=f"{name}: {loaded.about}", mean=loaded.mean, std=loaded.std, size=size or loaded.size)
    net = loaded.model
    if adapter is not None:
        net = _adapted(net, adapter, checkpoint)
    if isinstance(net, AdaptedBackbone):
        names, patch, channels = name_maps(net.out_strides), net.net.patch_size, net.net.patch_embed.conv.in_channels
    elif isinstance(net, DefocusBackbone):
        # A classifier is a backbone that returns no maps.
        classifier = hasattr(net, "head")
        names = ("logits",) if classifier else name_maps(net.out_strides, net.out_indices)
        patch, channels = net.patch_size, net.patch_embed.conv.in_channels
    else:
        names, patch, channels = ("logits",), 32, 3
    return Exportable(net, names, patch=patch, channels=channels, **common)


def _adapted(net: nn.Module, adapter: str, checkpoint: str | None) -> AdaptedBackbone:
    kinds = [kind for kind in ADAPTERS if kind != "AdaptedBackbone"]
    if adapter not in kinds:
        raise ExportError(f"there is no adapter {adapter!r}: give one of {', '.join(kinds)}")
    if not isinstance(net, DefocusBackbone) or hasattr(net, "head"):
        raise ExportError(f"an adapter takes a backbone's maps, and {type(net).__name__} gives none: name a family")
    if checkpoint is not None:
        raise ExportError(
            "with a checkpoint the adapter's weights would be random: export the config that the checkpoint is of"
        )
    return AdaptedBackbone(net, getattr(adapters, adapter).fit(net)).eval()


def _of_config(
    name: str, checkpoint: str | None, settings: dict[str, Any], part: str, size: tuple[int, int] | None
) -> Exportable:
    model, config, classes = model_of_config(name, checkpoint, settings)
    if part == "whole" and config.default_scope == "mmdet":
        raise ExportError(
            f"the head of mmdet's {type(model).__name__} computes sizes from tensors of sizes, which no exporter keeps "
            "open: export its backbone and neck with --part features, or a head of transformers as a whole"
        )
    images = config.model.get("data_preprocessor") or {}
    common = dict(
        about=f"{name}: {checkpoint or 'random weights'}",
        mean=tuple(images.get("mean") or MEAN),
        std=tuple(images.get("std") or STD),
        size=size,
        patch=patch_of(model),
    )
    if part == "features":
        return _features(model, **common)
    from backbones.integrations.exportable_mmseg import whole_segmentor

    return whole_segmentor(model, classes=classes, **common)


class _Features(nn.Module):
    """Backbone and neck of a detector or segmentor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if getattr(model, "with_neck", False) else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(images)))


def _features(model: nn.Module, **common) -> Exportable:
    features = _Features(model).eval()
    with torch.inference_mode():
        maps = flatten(features(torch.zeros(1, 3, _PROBE, _PROBE)))
    strides = [_PROBE // x.shape[-1] for x in maps]
    return Exportable(features, name_maps(strides, range(len(maps))), **common)

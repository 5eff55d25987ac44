"""transformers' heads on a backbone, their image processors, and what each is told of the backbone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Registers our backbones.
import backbones.integrations.transformers  # noqa: F401
from backbones.checkpoints import load_pretrained
from backbones.defocus import DefocusBackbone
from backbones.integrations.frameworks import needed
from backbones.integrations.transformers_training.data import collate_boxes, collate_label_maps, collate_masks

with needed("transformers"):
    import transformers
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

logger = logging.getLogger("backbones")

COLLATE: dict[str, Callable] = {"boxes": collate_boxes, "masks": collate_masks, "semantic": collate_label_maps}
# The classes of transformers that load a whole model, by what is learned.
_AUTO = {
    "boxes": "AutoModelForObjectDetection",
    "masks": "AutoModelForUniversalSegmentation",
    "semantic": "AutoModelForSemanticSegmentation",
}


@dataclass(frozen=True)
class Head:
    """A head of transformers.

    Attributes:
        config: Name of its config class.
        models: Name of its model class by what is learned: "boxes", "masks" or "semantic".
        processor: Name of its image processor's class.
        follow: Options that follow from the channels and strides of the backbone's maps and from the options given.
    """

    config: str
    models: Mapping[str, str]
    processor: str
    follow: Callable[[Sequence[int], Sequence[int], Mapping[str, Any]], dict[str, Any]] = (
        lambda channels, strides, options: {}
    )


def _real_time(channels: Sequence[int], strides: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of RT-DETR v2, D-FINE and DEIMv2: an entry for each map, attention within the coarsest."""
    count = len(channels)
    width = options.get("encoder_hidden_dim", options.get("d_model", 256))
    return {
        "encoder_in_channels": list(channels),
        "encoder_hidden_dim": width,
        "decoder_in_channels": [width] * count,
        "num_feature_levels": count,
        "encode_proj_layers": [count - 1],
        "feat_strides": list(strides),
        # As PyTorch's own linear layers start. transformers' 0.01 is for what is loaded afterwards: from there a short
        # training takes twice as long.
        "initializer_range": (3 * width) ** -0.5,
    }


def _deimv2(channels: Sequence[int], strides: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("encoder_type") != "lite":
        return _real_time(channels, strides, options)
    # It makes a second map itself. Of several it would leave those behind the second without a gradient.
    if len(channels) != 1:
        raise ValueError(
            "DEIMv2's lite encoder takes one map and makes the next coarser one itself, the backbone gives "
            f"{len(channels)}: ask its adapter for one (SimpleFPN: num_outs 1), or leave encoder_type away"
        )
    both = _real_time(list(channels) * 2, [strides[0], 2 * strides[0]], options)
    return {**both, "encoder_in_channels": list(channels)}


def _rt_detr_v2(channels: Sequence[int], strides: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    return {**_real_time(channels, strides, options), "decoder_n_levels": len(channels)}


def _deformable_detr(channels: Sequence[int], strides: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_feature_levels": max(len(channels), options.get("num_feature_levels", 4))}


def _mask2former(channels: Sequence[int], strides: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"feature_strides": list(strides)}


HEADS = {
    "rt_detr_v2": Head("RTDetrV2Config", {"boxes": "RTDetrV2ForObjectDetection"}, "RTDetrImageProcessor", _rt_detr_v2),
    "d_fine": Head("DFineConfig", {"boxes": "DFineForObjectDetection"}, "RTDetrImageProcessor", _real_time),
    "deimv2": Head("Deimv2Config", {"boxes": "Deimv2ForObjectDetection"}, "RTDetrImageProcessor", _deimv2),
    "deformable_detr": Head(
        "DeformableDetrConfig",
        {"boxes": "DeformableDetrForObjectDetection"},
        "DeformableDetrImageProcessor",
        _deformable_detr,
    ),
    "detr": Head("DetrConfig", {"boxes": "DetrForObjectDetection"}, "DetrImageProcessor"),
    "mask2former": Head(
        "Mask2FormerConfig",
        dict.fromkeys(("masks", "semantic"), "Mask2FormerForUniversalSegmentation"),
        "Mask2FormerImageProcessor",
        _mask2former,
    ),
    "upernet": Head("UperNetConfig", {"semantic": "UperNetForSemanticSegmentation"}, "SegformerImageProcessor"),
}


def find_task(head: str, semantic: bool) -> str:
    """What a head learns from the data at hand: "boxes", "masks" or "semantic".

    Raises:
        ValueError: There is no such head, or it does not learn from such data.
    """
    if head not in HEADS:
        raise ValueError(f"there is no head {head!r}; name one of {', '.join(HEADS)}")
    tasks = [task for task in HEADS[head].models if (task == "semantic") == semantic]
    if not tasks:
        kind = "folders of label maps" if semantic else "a COCO file of objects"
        able = [name for name, other in HEADS.items() if any((t == "semantic") == semantic for t in other.models)]
        raise ValueError(f"the head {head} does not learn from {kind}; {', '.join(able)} do")
    return tasks[0]


def build_model(
    head: str, task: str, backbone: Mapping[str, Any], options: Mapping[str, Any], names: Sequence[str]
) -> PreTrainedModel:
    """A head on a backbone, both of random weights.

    Args:
        head: A name of `HEADS`.
        task: As of `find_task`.
        backbone: The fields of a backbone's config, with its ``model_type``.
        options: Fields of the head's config that differ from its defaults. What follows from the backbone and the
            classes need not be said.
        names: Of the classes.

    Raises:
        ValueError: ``backbone`` lacks a model_type that transformers knows, or an option is none of the head's.
    """
    kind = HEADS[head]
    config_class = getattr(transformers, kind.config)
    net_config = _backbone_config(backbone)
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(
            f"the head {head} has no option {', '.join(unknown)}; {kind.config} of transformers lists them"
        )
    channels, strides = _maps_of(net_config)
    config = config_class(
        backbone_config=net_config,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        **{**kind.follow(channels, strides, options), **options},
    )
    model = getattr(transformers, kind.models[task])(config)
    for module in model.modules():
        # RT-DETR's own start has them at about 0.01, from which nothing is learned in a short training.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def _backbone_config(backbone: Mapping[str, Any]) -> PreTrainedConfig:
    settings = dict(backbone)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ValueError("the backbone has no model_type: name one that transformers knows, as defocus_mamba or resnet")
    return AutoConfig.for_model(model_type, **settings)


def _maps_of(config: PreTrainedConfig) -> tuple[list[int], list[int]]:
    """Channels and strides of a backbone's maps, as a small image shows them."""
    net = AutoBackbone.from_config(config).eval()
    side = 128
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, side, side)).feature_maps
    return [m.shape[1] for m in maps], [side // m.shape[-1] for m in maps]


def load_model(source: str, task: str, names: Sequence[str]) -> PreTrainedModel:
    """A whole trained model, from a folder or the Hub; where it knows other classes, what tells them apart is new."""
    labels = dict(enumerate(names))
    return getattr(transformers, _AUTO[task]).from_pretrained(
        source, id2label=labels, label2id={name: label for label, name in labels.items()}, ignore_mismatched_sizes=True
    )


def load_backbone(model: nn.Module, checkpoint: str) -> None:
    """Fills the De-focus backbone of a model from a checkpoint of any framework.

    Raises:
        ValueError: The model has no such backbone.
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    nets = [module for module in model.modules() if isinstance(module, DefocusBackbone)]
    if len(nets) != 1:
        raise ValueError(
            f"a checkpoint is for a De-focus backbone, of which {type(model).__name__} has {len(nets)}: name a "
            "backbone of model_type defocus_mamba, defocus_vit or defocus_retnet"
        )
    logger.info("%s", load_pretrained(nets[0], checkpoint))


def build_processor(head: str, task: str, size: tuple[int, int], options: Mapping[str, Any], ignore_label: int):
    """The head's image processor: every image is resized to ``size``, (height, width), and normalised as for ImageNet.

    Args:
        head: A name of `HEADS`.
        task: As of `find_task`.
        size: Of the images that the model sees.
        options: Arguments of the processor that differ.
        ignore_label: The label of label maps that nothing is learned from.
    """
    settings = {
        "size": {"height": size[0], "width": size[1]},
        "do_normalize": True,
        "image_mean": list(IMAGENET_DEFAULT_MEAN),
        "image_std": list(IMAGENET_DEFAULT_STD),
    }
    if head == "mask2former" and task == "semantic":
        settings["ignore_index"] = ignore_label
    return getattr(transformers, HEADS[head].processor)(**{**settings, **options})


def check_size(head: str, model: PreTrainedModel, size: tuple[int, int]) -> None:
    """Raises ValueError if a head that doubles coarse maps onto finer ones cannot at ``size``, (height, width)."""
    if head in ("rt_detr_v2", "d_fine", "deimv2"):
        coarsest = max(model.config.feat_strides)
        if size[0] % coarsest or size[1] % coarsest:
            raise ValueError(f"{head} takes images whose sides are multiples of {coarsest}, got {size[0]}×{size[1]}")

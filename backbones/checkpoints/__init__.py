"""Reads checkpoint files safely and carries their weights into our modules."""

from backbones.checkpoints.adapter import adapter_from_checkpoint
from backbones.checkpoints.convert import (
    backbone_from_checkpoint,
    check_finite,
    classifier_heads,
    describe_backbone,
    describe_heads,
    find_average,
    find_backbones,
    select_head_classes,
    weights_of,
)
from backbones.checkpoints.layouts import to_classifier, to_detectron2, to_mmdet
from backbones.checkpoints.load import (
    FoundBackbone,
    LoadReport,
    check_shapes,
    find_misfits,
    load_pretrained,
    load_strictly,
    read_backbone,
)
from backbones.checkpoints.read import CheckpointError, read_checkpoint

__all__ = [
    "CheckpointError",
    "FoundBackbone",
    "LoadReport",
    "adapter_from_checkpoint",
    "backbone_from_checkpoint",
    "check_finite",
    "check_shapes",
    "classifier_heads",
    "describe_backbone",
    "describe_heads",
    "find_average",
    "find_backbones",
    "find_misfits",
    "load_pretrained",
    "load_strictly",
    "read_backbone",
    "read_checkpoint",
    "select_head_classes",
    "to_classifier",
    "to_detectron2",
    "to_mmdet",
    "weights_of",
]

"""Loads weights into a module, and says what happened."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from backbones.checkpoints.convert import (
    _some,
    backbone_from_checkpoint,
    check_finite,
    describe_backbone,
    find_average,
    weights_of,
)
from backbones.checkpoints.read import CheckpointError, read_checkpoint

logger = logging.getLogger("backbones")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        file: The checkpoint.
        container: The key in it that held the weights, None for the file itself.
        average: Whether they are a moving average.
        loaded: Names that were loaded.
        left: Names in the file that were not used: heads, necks.
    """

    file: str
    container: str | None
    average: bool
    loaded: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        average = ", a moving average" if self.average else ""
        where = f" [{self.container}{average}]" if self.container else ""
        rest = f"; left out {len(self.left)}: {_some(list(self.left))}" if self.left else ""
        return f"{self.file}{where}: loaded {len(self.loaded)} tensors{rest}"


@dataclass(frozen=True)
class FoundBackbone:
    """What `read_backbone` found in a file.

    Attributes:
        container: The key that held the weights, None for the file itself.
        average: Whether they are a moving average.
        weights: All of them, by the names in the file.
        backbone: Those of the backbone, by its own names.
        left: Names in the file that are not the backbone's: heads, necks.
    """

    container: str | None
    average: bool
    weights: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor]
    left: Sequence[str]


def load_pretrained(
    model: nn.Module, path: str | os.PathLike, container: str | None = None, prefix: str | None = None
) -> LoadReport:
    """Loads a backbone's weights from the checkpoint of any model that has one, strictly.

    That may be a classifier, a detector, a segmentor or a backbone, saved by mmengine, Detectron2, detrex, timm or
    plain PyTorch: the backbone is found by its patch embedding.

    Args:
        model: A De-focus backbone.
        path: A `.pth` or `.safetensors` file, or an http(s) address.
        container: The key in the file that holds the weights; None prefers a moving average, see `find_average`.
        prefix: The beginning of the backbone's names, for a file with several backbones.

    Returns:
        What was loaded and what was left out; it is logged, too.

    Raises:
        CheckpointError: The file cannot be read, holds no backbone or several, weights that are NaN or infinite, or a
            backbone of other names or shapes; nothing is loaded then.
    """
    found = read_backbone(path, container, prefix)
    load_strictly(model, found.backbone, f"checkpoint {path}")
    report = LoadReport(str(path), found.container, found.average, tuple(found.backbone), tuple(found.left))
    logger.info("%s", report)
    return report


def read_backbone(path: str | os.PathLike, container: str | None = None, prefix: str | None = None) -> FoundBackbone:
    """The backbone in the checkpoint of any model that has one; arguments as of `load_pretrained`.

    Raises:
        CheckpointError: The file cannot be read, holds no backbone or several, or weights that are NaN or infinite.
    """
    checkpoint = read_checkpoint(path)
    try:
        weights, key = weights_of(checkpoint, container)
        backbone, left = backbone_from_checkpoint(weights, prefix)
        check_finite(backbone)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    average = key is not None and key == find_average(checkpoint)
    return FoundBackbone(key, average, weights, backbone, left)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads weights that are those of ``model`` name by name and shape by shape.

    Args:
        model: What is filled.
        weights: Name to value.
        source: What to call the weights.

    Raises:
        CheckpointError: They are not; nothing is loaded then.
    """
    own, shapes = (
        {name: tuple(value.shape) for name, value in values.items()} for values in (model.state_dict(), weights)
    )
    check_shapes(source, shapes, type(model).__name__, own)
    model.load_state_dict(weights)


class Misfits(NamedTuple):
    """How weights differ from those of a model, by name.

    Attributes:
        missing: Names of the model that the weights lack.
        unexpected: Names of the weights that the model lacks.
        reshaped: Names that both have, in different shapes.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]


def find_misfits(shapes: Mapping[str, Shape], own: Mapping[str, Shape]) -> Misfits:
    """Compares names and shapes of weights with those of a model."""
    return Misfits(
        [name for name in own if name not in shapes],
        [name for name in shapes if name not in own],
        [name for name in own if name in shapes and shapes[name] != own[name]],
    )


def check_shapes(source: str, shapes: Mapping[str, Shape], model: str, own: Mapping[str, Shape]) -> None:
    """Raises CheckpointError if a backbone's weights are not those of a model, name by name and shape by shape.

    Args:
        source: What to call the weights.
        shapes: Name to shape of the weights.
        model: What to call the model.
        own: Name to shape of the model.
    """
    found = find_misfits(shapes, own)
    problems = []
    if found.missing:
        problems.append(f"lacks {_some(found.missing)}")
    if found.unexpected:
        problems.append(f"has besides {_some(found.unexpected)}")
    if found.reshaped:
        both = [f"{name} {shapes[name]} in the file, {own[name]} in the model" for name in found.reshaped]
        problems.append(f"has other shapes: {_some(both, 3)}")
    if problems:
        family, sizes = describe_backbone(shapes)
        raise CheckpointError(
            f"{source} does not fit {model}: it {'; it '.join(problems)}. It holds a "
            f"{family or 'backbone of an unknown family'} with {', '.join(f'{k}={v}' for k, v in sizes.items())}: "
            "choose the model, its arch and its patch_size to fit"
        )

"""Loads weights into a module, and says what happened."""

import logging
import os
from dataclasses import dataclass

from torch import nn

from backbones.checkpoints.convert import _some, backbone_from_checkpoint, weights_of
from backbones.checkpoints.read import CheckpointError, read_checkpoint

logger = logging.getLogger("backbones")


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        file: The checkpoint.
        container: The key in it that held the weights, None for the file itself.
        loaded: Names that were loaded.
        left: Names in the file that were not used: heads, necks.
    """

    file: str
    container: str | None
    loaded: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        where = f" [{self.container}]" if self.container else ""
        rest = f"; left out {len(self.left)}: {_some(list(self.left))}" if self.left else ""
        return f"{self.file}{where}: loaded {len(self.loaded)} tensors{rest}"


def load_pretrained(model: nn.Module, path: str | os.PathLike, container: str | None = None) -> LoadReport:
    """Loads a backbone's weights from a classifier, a detector or a backbone checkpoint, strictly.

    Args:
        model: A De-focus backbone.
        path: A `.pth` or `.safetensors` file, or an http(s) address.
        container: The key in the file that holds the weights; None prefers an exponential moving average.

    Returns:
        What was loaded and what was left out; it is logged, too.

    Raises:
        CheckpointError: The file cannot be read, or its backbone has other names or shapes; nothing is loaded then.
    """
    weights, found = weights_of(read_checkpoint(path), container)
    kept, left = backbone_from_checkpoint(weights)
    own = model.state_dict()
    missing = [name for name in own if name not in kept]
    unexpected = [name for name in kept if name not in own]
    shapes = [
        f"{name} {tuple(kept[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in kept and kept[name].shape != own[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unexpected:
        problems.append(f"has besides {_some(unexpected)}")
    if shapes:
        problems.append(f"has other shapes: {_some(shapes, 3)}")
    if problems:
        raise CheckpointError(
            f"checkpoint {path} does not fit {type(model).__name__}: it {'; it '.join(problems)}. "
            "Choose the arch that the checkpoint was made with (tools/convert_checkpoint.py --inspect shows it)"
        )
    model.load_state_dict(kept)
    report = LoadReport(str(path), found, tuple(kept), tuple(left))
    logger.info("%s", report)
    return report

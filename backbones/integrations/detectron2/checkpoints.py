"""Checkpoints of others where Detectron2 expects its own: ``train.init_checkpoint=defocus:FILE``."""

import json
import logging
import tempfile

import torch
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from backbones.checkpoints import (
    CheckpointError,
    check_finite,
    check_shapes,
    find_average,
    read_checkpoint,
    to_detectron2,
    weights_of,
)

# Below Detectron2's own, whose handlers print it.
logger = logging.getLogger("detectron2.defocus")

# Beside a backbone's tensors: what they were made of. Detectron2 drops tensors of other shapes before it loads.
_SOURCE = "defocus_source"


def refuse_other_sizes(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Raises CheckpointError where a file that `DefocusCheckpoints` converted does not fit a backbone."""
    note = state_dict.pop(prefix + _SOURCE, None)
    if note is None:
        return
    source = json.loads(bytes(note.tolist()))
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = {name: tuple(shape) for name, shape in source["shapes"].items()}
    check_shapes(f"checkpoint {source['file']}", shapes, type(module).__name__, own)


class DefocusCheckpoints(PathHandler):
    """Released files, mmdet's, and any that `read_checkpoint` reads, where Detectron2 expects its own.

    ``train.init_checkpoint=defocus:FILE`` (``MODEL.WEIGHTS`` in YAML) converts ``FILE`` into Detectron2's names. The
    backbone goes below ``backbone.net.``, where `SimpleFeaturePyramid` and `AdaptedBackbone` have it;
    ``defocus:FILE#backbone.`` puts it elsewhere. Detectron2 itself warns of what does not fit and trains on without it,
    which is right for heads of other classes; a backbone of another size is a CheckpointError.
    """

    PREFIX = "defocus:"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def __init__(self):
        super().__init__()
        # Open until the process ends.
        self._files = []

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        file, _, prefix = path.removeprefix(self.PREFIX).partition("#")
        prefix = prefix or "backbone.net."
        checkpoint = read_checkpoint(file)
        try:
            weights, container = weights_of(checkpoint)
            converted, left = to_detectron2(weights, prefix)
            check_finite(converted)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {file}: {error}") from None
        average = ", a moving average" if container and container == find_average(checkpoint) else ""
        where = f" [{container}{average}]" if container else ""
        logger.info(
            "%s%s: %d tensors; left out %d: %s", file, where, len(converted), len(left), ", ".join(left) or "none"
        )
        shapes = {name: tuple(value.shape) for name, value in converted.items() if name.startswith(prefix)}
        note = json.dumps(dict(file=file, shapes={name.removeprefix(prefix): shape for name, shape in shapes.items()}))
        converted[prefix + _SOURCE] = torch.frombuffer(bytearray(note.encode()), dtype=torch.uint8)
        # A file without a name, which no signal can leave behind, and which each reader opens anew below this one.
        target = tempfile.TemporaryFile(prefix="defocus-")  # noqa: SIM115
        torch.save({"model": converted}, target)
        target.flush()
        self._files.append(target)
        return f"/proc/self/fd/{target.fileno()}"


PathManager.register_handler(DefocusCheckpoints(), allow_override=True)

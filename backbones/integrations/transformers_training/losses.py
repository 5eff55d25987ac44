"""Losses that several processes sum up to that of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

from backbones.integrations.frameworks import needed

with needed("transformers"):
    from accelerate.utils import reduce
    from transformers.loss import loss_for_object_detection
    from transformers.models.mask2former import modeling_mask2former


@contextlib.contextmanager
def dividing_by_all_objects() -> Iterator[None]:
    """While it lasts, DETR, Deformable DETR and Mask2Former divide losses by the objects that a process has on average.

    transformers 5.24 takes the mean over the processes and divides that by their number once more, so that the loss
    grows with them.
    """
    with contextlib.ExitStack() as places:
        for module in (loss_for_object_detection, modeling_mask2former):
            places.enter_context(patch.object(module, "reduce", partial(reduce, reduction="sum")))
        yield

"""Our deformable attention in the place of mmcv's and detrex', in plain PyTorch and by their kernels."""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import patch

from torch import Tensor

from backbones.ops import deformable_attention
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION

# What both call them.
_PLAIN = "multi_scale_deformable_attn_pytorch"
_KERNEL = "MultiScaleDeformableAttnFunction"


def multi_scale_deformable_attention(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`deformable_attention` with the shapes as a tensor `(maps, 2)`, as mmcv and detrex hand them over."""
    shapes = [tuple(shape) for shape in value_spatial_shapes.tolist()]
    return deformable_attention(value, shapes, sampling_locations, attention_weights)


class _Kernel:
    """In the place of the autograd function that runs a framework's CUDA kernel."""

    def __init__(self, original):
        self._original = original

    def apply(self, value, shapes, starts, locations, weights, images_at_once):
        # Ours may run on theirs.
        if DEFORMABLE_ATTENTION.select(value.device.type).name == "mmcv":
            return self._original.apply(value, shapes, starts, locations, weights, images_at_once)
        return multi_scale_deformable_attention(value, shapes, locations, weights)


@contextlib.contextmanager
def standing_in(module: ModuleType) -> Iterator[None]:
    """While it lasts, ours is the plain function and the kernel of ``module``, mmcv's or detrex' own."""
    with contextlib.ExitStack() as places:
        places.enter_context(patch.object(module, _PLAIN, multi_scale_deformable_attention))
        places.enter_context(patch.object(module, _KERNEL, _Kernel(getattr(module, _KERNEL))))
        yield

"""Our deformable attention in the place of the plain PyTorch that transformers' heads carry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

from torch import Tensor

from backbones.integrations.frameworks import needed
from backbones.ops import deformable_attention

with needed("transformers"):
    from transformers.models.d_fine import modeling_d_fine
    from transformers.models.deformable_detr import modeling_deformable_detr
    from transformers.models.deimv2 import modeling_deimv2
    from transformers.models.mask2former import modeling_mask2former
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """While it lasts, deformable attention in transformers' heads runs on `backbones.ops.deformable_attention`.

    They are Deformable DETR, RT-DETR v2, D-FINE, DEIMv2 and Mask2Former. D-FINE and DEIMv2 have to be built within, for
    they keep the function that they were built with.
    """
    with contextlib.ExitStack() as places:
        places.enter_context(
            patch.object(modeling_deformable_detr.MultiScaleDeformableAttention, "forward", _in_deformable_detr)
        )
        places.enter_context(patch.object(modeling_mask2former, "multi_scale_deformable_attention", _attend))
        for module in (modeling_rt_detr_v2, modeling_d_fine, modeling_deimv2):
            name = "multi_scale_deformable_attention_v2"
            places.enter_context(patch.object(module, name, _second_version(getattr(module, name))))
        yield


def _attend(value: Tensor, shapes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor) -> Tensor:
    # The heads' own takes inputs of several dtypes, as autocast leaves them.
    dtype = value.dtype
    return deformable_attention(value, [(int(h), int(w)) for h, w in shapes], locations.to(dtype), weights.to(dtype))


def _in_deformable_detr(
    self,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _attend(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _second_version(original: Callable) -> Callable:
    """Of RT-DETR v2, D-FINE, DEIMv2: maps and points are one dimension, and each map may have its own points."""

    def attend(
        value: Tensor,
        value_spatial_shapes: Sequence[tuple[int, int]],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: Sequence[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default" or len(set(num_points_list)) != 1:
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        split = (len(num_points_list), num_points_list[0])
        return _attend(
            value, value_spatial_shapes, sampling_locations.unflatten(3, split), attention_weights.unflatten(3, split)
        )

    return attend

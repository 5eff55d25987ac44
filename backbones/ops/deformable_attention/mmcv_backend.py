"""Multi-scale deformable attention on mmcv's CUDA kernel, where mmcv is installed with its operators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.ops.deformable_attention.levels import level_table
from backbones.ops.deformable_attention.naive import naive_deformable_attention
from backbones.ops.dispatch import import_refusal

# Images that the kernel takes at once; it wants a divisor of the batch.
IMAGES_AT_ONCE = 64


def refusal(device_type: str) -> str | None:
    """Why mmcv's kernel cannot serve a device, or None."""
    if device_type != "cuda":
        return "mmcv's kernel runs on CUDA"
    reason = import_refusal("mmcv.ops", "install mmcv with its operators")
    if reason is not None:
        return reason
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == "not available":
        return "mmcv was built without CUDA"
    return None


def may_differ(device_type: str) -> str | None:
    """Why two runs may give different bits."""
    return "mmcv's kernel adds the gradients of values atomically"


def mmcv_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`; computes in at least fp32."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    if value.numel() == 0 or locations.numel() == 0:
        # Their kernel divides by the number of images, and a launch of nothing is an error.
        return naive_deformable_attention(value, shapes, locations, weights)
    work = torch.promote_types(value.dtype, torch.float32)
    table = level_table(shapes, value.device)
    at_once = next(n for n in range(min(IMAGES_AT_ONCE, len(value)), 0, -1) if len(value) % n == 0)
    out = MultiScaleDeformableAttnFunction.apply(
        value.to(work),
        table[:, :2].contiguous(),
        table[:, 2].contiguous(),
        locations.to(work),
        weights.to(work),
        at_once,
    )
    return out.to(value.dtype)

"""The `triton` backend of deformable attention. Its kernels are imported when first run: nobody else needs Triton."""

from collections.abc import Sequence

from torch import Tensor

from backbones.ops.deformable_attention.registration import register_deformable


def _forward(value, sides, locations, weights):
    from backbones.ops.deformable_attention import triton_kernels

    return triton_kernels.forward(value, sides, locations, weights)


def _backward(grad, value, sides, locations, weights):
    from backbones.ops.deformable_attention import triton_kernels

    return triton_kernels.backward(grad, value, sides, locations, weights)


_attend = register_deformable("triton", _forward, _backward)


def triton_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`; each tensor in fp32, bf16 or fp16, computed in fp32."""
    return _attend(value, [side for shape in shapes for side in shape], locations, weights)

"""Multi-scale deformable attention (arXiv 2010.04159, eq. 3): each query reads a few points of several maps."""

from collections.abc import Sequence

from torch import Tensor

from backbones.ops import cpu_extension
from backbones.ops.deformable_attention.cpu import cpu_deformable_attention
from backbones.ops.deformable_attention.grid_sample import grid_sample_deformable_attention
from backbones.ops.deformable_attention.grid_sample import may_differ as grid_sample_may_differ
from backbones.ops.deformable_attention.mmcv_backend import may_differ as mmcv_may_differ
from backbones.ops.deformable_attention.mmcv_backend import mmcv_deformable_attention
from backbones.ops.deformable_attention.mmcv_backend import refusal as mmcv_refusal
from backbones.ops.deformable_attention.naive import naive_deformable_attention
from backbones.ops.deformable_attention.triton_backend import triton_deformable_attention
from backbones.ops.dispatch import Backend, Operation, check_devices, serves_every_device, triton_refusal

DEFORMABLE_ATTENTION = Operation(
    "deformable_attention",
    (
        Backend("cpu", cpu_deformable_attention, cpu_extension.refusal),
        # No GPU has timed the two kernels against each other: ours needs no build, knows bf16 and repeats bit by bit.
        Backend("triton", triton_deformable_attention, triton_refusal),
        Backend("mmcv", mmcv_deformable_attention, mmcv_refusal, may_differ=mmcv_may_differ),
        Backend("torch", grid_sample_deformable_attention, serves_every_device, may_differ=grid_sample_may_differ),
        Backend("reference", naive_deformable_attention, serves_every_device, automatic=False),
    ),
    environment="DEFOCUS_DEFORMABLE_BACKEND",
)


def deformable_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """out_q = Σ over maps and points of weight · value bilinearly sampled at location, a head.

    Args:
        value: `(b, s, h, v)`, the tokens of all maps one after another, each map row by row.
        shapes: (height, width) of each map; the areas sum to s.
        locations: `(b, q, h, maps, points, 2)`, x and y; 0 is the left or top edge of the map, 1 the right or bottom
            one. Beyond the edge lie zeros.
        weights: `(b, q, h, maps, points)`, as a rule summing to 1 over maps and points.
        backend: A name to force a backend; None chooses by device, see `backbones.ops.dispatch`.

    Returns:
        `(b, q, h·v)` in the dtype of ``value``.

    Raises:
        ValueError: Shapes that do not fit, inputs on several devices, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    tokens = sum(h * w for h, w in shapes)
    if (
        value.ndim != 4
        or value.shape[1] != tokens
        or locations.ndim != 6
        or locations.shape[0] != value.shape[0]
        or locations.shape[2:4] != (value.shape[2], len(shapes))
        or locations.shape[5] != 2
        or weights.shape != locations.shape[:5]
    ):
        raise ValueError(
            f"needs value (b, {tokens}, h, v), locations (b, q, h, {len(shapes)}, points, 2) and weights like them "
            f"without the last, got {tuple(value.shape)}, {tuple(locations.shape)} and {tuple(weights.shape)}"
        )
    check_devices(value=value, locations=locations, weights=weights)
    return DEFORMABLE_ATTENTION.run(backend, value, shapes, locations, weights)

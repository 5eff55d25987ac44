"""Multi-scale deformable attention compiled for the processor: `csrc/deformable_attention.cpp`."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.ops.cpu_extension import call


class _Arguments(ctypes.Structure):
    """`DeformableArguments` of the C++ side."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("is_double", "batch", "tokens", "queries", "heads", "width", "maps", "points")
        ),
        ("shapes", ctypes.POINTER(ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("value", "locations", "weights", "grad")),
        *((name, ctypes.c_void_p) for name in ("out", "dvalue", "dlocations", "dweights")),
    ]


def _run(function, sides, inputs, outputs):
    inputs = {name: x.contiguous() for name, x in inputs.items()}
    b, tokens, heads, width = inputs["value"].shape
    _, queries, _, maps, points, _ = inputs["locations"].shape
    arguments = _Arguments(inputs["value"].dtype == torch.float64, b, tokens, queries, heads, width, maps, points)
    arguments.shapes = (ctypes.c_int64 * len(sides))(*sides)
    for name, tensor in (inputs | outputs).items():
        setattr(arguments, name, tensor.data_ptr())
    call(function, arguments)


# The schemas are written out: PyTorch 2.6 does not infer one from collections.abc.
@torch.library.custom_op(
    "defocus::deformable_attention_cpu",
    mutates_args=(),
    schema="(Tensor value, SymInt[] sides, Tensor locations, Tensor weights) -> Tensor",
)
def _deformable_attention(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """All tensors in fp32 or all in fp64; ``sides`` are height and width of each map in turn."""
    b, _, heads, width = value.shape
    out = value.new_empty(b, locations.shape[1], heads * width)
    inputs = dict(value=value, locations=locations, weights=weights)
    _run("defocus_deformable_forward", sides, inputs, dict(out=out))
    return out


@_deformable_attention.register_fake
def _(value, sides, locations, weights):
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op(
    "defocus::deformable_attention_cpu_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor value, SymInt[] sides, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = dict(value=value, locations=locations, weights=weights)
    grads = {f"d{name}": x.new_empty(x.shape) for name, x in inputs.items()}
    _run("defocus_deformable_backward", sides, inputs | dict(grad=grad), grads)
    return tuple(grads.values())


@_backward.register_fake
def _(grad, value, sides, locations, weights):
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _setup_context(ctx, inputs, output):
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx, grad):
    value, locations, weights = ctx.saved_tensors
    dvalue, dlocations, dweights = _backward(grad, value, ctx.sides, locations, weights)
    return dvalue, None, dlocations, dweights


_deformable_attention.register_autograd(_differentiate, setup_context=_setup_context)


def cpu_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`; computes in at least fp32, for 16 bits cannot place a point in a large map."""
    work = torch.promote_types(value.dtype, torch.float32)
    sides = [side for shape in shapes for side in shape]
    return _deformable_attention(value.to(work), sides, locations.to(work), weights.to(work)).to(value.dtype)

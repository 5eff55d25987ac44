"""Multi-scale deformable attention compiled for the processor: `csrc/deformable_attention.cpp`."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.ops.cpu_extension import call
from backbones.ops.deformable_attention.registration import register_deformable


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


def _forward(value, sides, locations, weights):
    """All tensors in fp32 or all in fp64."""
    b, _, heads, width = value.shape
    out = value.new_empty(b, locations.shape[1], heads * width)
    inputs = dict(value=value, locations=locations, weights=weights)
    _run("defocus_deformable_forward", sides, inputs, dict(out=out))
    return out


def _backward(grad, value, sides, locations, weights):
    inputs = dict(value=value, locations=locations, weights=weights)
    grads = {f"d{name}": x.new_empty(x.shape) for name, x in inputs.items()}
    _run("defocus_deformable_backward", sides, inputs | dict(grad=grad), grads)
    return tuple(grads.values())


_attend = register_deformable("cpu", _forward, _backward)


def cpu_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As `deformable_attention`; computes in at least fp32, for 16 bits cannot place a point in a large map."""
    work = torch.promote_types(value.dtype, torch.float32)
    sides = [side for shape in shapes for side in shape]
    return _attend(value.to(work), sides, locations.to(work), weights.to(work)).to(value.dtype)

"""The causal convolution compiled for the processor: `csrc/causal_conv1d.cpp`."""

import ctypes

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable
from backbones.ops.cpu_extension import DTYPES, call
from backbones.ops.layout import rows_adjacent


class _Arguments(ctypes.Structure):
    """`ConvArguments` of the C++ side."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "length", "channels", "taps")),
        *((name, ctypes.c_void_p) for name in ("x", "grad")),
        *((name, ctypes.c_int64) for name in ("x_batch", "x_token", "grad_batch", "grad_token")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "dweight", "dbias", "out", "dx")),
    ]


def _run(function, sequences, weight, bias, outputs):
    x = sequences["x"]
    work = torch.promote_types(x.dtype, torch.float32)
    taps = weight[:, 0].t().to(work).contiguous()
    bias = bias.to(work).contiguous()
    sequences = {name: rows_adjacent(s) for name, s in sequences.items()}
    arguments = _Arguments(DTYPES.index(x.dtype), *x.shape, len(taps))
    for name, tensor in (sequences | outputs | dict(weight=taps, bias=bias)).items():
        setattr(arguments, name, tensor.data_ptr())
    for name, s in sequences.items():
        setattr(arguments, f"{name}_batch", s.stride(0))
        setattr(arguments, f"{name}_token", s.stride(1))
    call(function, arguments)


@torch.library.custom_op("defocus::causal_conv1d_silu_cpu", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    _run("defocus_conv_forward", dict(x=x), weight, bias, dict(out=out))
    return out


@_convolve.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("defocus::causal_conv1d_silu_cpu_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    work = torch.promote_types(x.dtype, torch.float32)
    dx = torch.empty(x.shape, dtype=x.dtype)
    dtaps = torch.empty(weight.shape[2], weight.shape[0], dtype=work)
    dbias = torch.empty(bias.shape, dtype=work)
    _run("defocus_conv_backward", dict(x=x, grad=grad), weight, bias, dict(dx=dx, dweight=dtaps, dbias=dbias))
    return dx, dtaps.t()[:, None].to(weight.dtype).contiguous(), dbias.to(bias.dtype)


@_backward.register_fake
def _(grad, x, weight, bias):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return _backward(grad, *ctx.saved_tensors)


# See `causal_conv1d_silu`; weight and bias in any dtype.
cpu_causal_conv1d_silu = differentiable(_convolve, _differentiate, _setup_context)

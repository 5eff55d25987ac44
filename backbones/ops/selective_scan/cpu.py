"""The De-focus scan compiled for the processor: `csrc/selective_scan.cpp`."""

import ctypes

import torch
from torch import Tensor

from backbones.ops.cpu_extension import DTYPES, call
from backbones.ops.layout import rows_adjacent
from backbones.ops.selective_scan.naive import NORM_EPS
from backbones.ops.selective_scan.registration import register_scan

CHUNK = 64
_SEQUENCES = ("u", "dt", "B", "C", "z", "grad")


class _Arguments(ctypes.Structure):
    """`ScanArguments` of the C++ side."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "length", "channels", "states", "group", "chunk")),
        *((name, ctypes.c_double) for name in ("rope_scale", "delta_scale", "norm_eps")),
        *((name, ctypes.c_void_p) for name in _SEQUENCES),
        *((f"{name}_{axis}", ctypes.c_int64) for name in _SEQUENCES for axis in ("batch", "token")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "freq", "dt_bias", "dA", "dD", "dfreq", "ddt_bias")),
        *((name, ctypes.c_void_p) for name in ("boundaries", "out", "du", "ddt", "dB", "dC", "dz")),
    ]


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x``, `(b, l, ·)`, in a dtype with neighbouring channels side by side: itself, where it is so."""
    return rows_adjacent(x.to(dtype))


def _run(function, sequences, weights, scales, outputs):
    rope_scale, delta_scale, norm_group_dims = scales
    u, A = sequences["u"], weights["A"]
    b, l, d = u.shape
    arguments = _Arguments(
        DTYPES.index(u.dtype), b, l, d, A.shape[1], norm_group_dims, CHUNK, rope_scale, delta_scale, NORM_EPS
    )
    for name, x in (sequences | weights | outputs).items():
        setattr(arguments, name, x.data_ptr())
    for name, x in sequences.items():
        setattr(arguments, f"{name}_batch", x.stride(0))
        setattr(arguments, f"{name}_token", x.stride(1))
    call(function, arguments)


def _prepare(u, dt, A, B, C, D, z, freq, dt_bias):
    """Sequences in one dtype and weights in that of the computation."""
    work = torch.promote_types(u.dtype, torch.float32)
    same = all(x.dtype == u.dtype for x in (dt, B, C, z))
    dtype = u.dtype if same and u.dtype in DTYPES else work
    sequences = {name: rows(x, dtype) for name, x in dict(u=u, dt=dt, B=B, C=C, z=z).items()}
    weights = {name: x.to(work).contiguous() for name, x in dict(A=A, D=D, freq=freq, dt_bias=dt_bias).items()}
    return sequences, weights


def _forward(u, dt, A, B, C, D, z, freq, dt_bias, *scales):
    sequences, weights = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    b, l, d = u.shape
    out = torch.empty(b, l, d, dtype=sequences["u"].dtype)
    boundaries = torch.empty(b, (l + CHUNK - 1) // CHUNK, d, A.shape[1], dtype=weights["A"].dtype)
    _run("defocus_scan_forward", sequences, weights, scales, dict(out=out, boundaries=boundaries))
    return out.to(u.dtype), boundaries


def _backward(grad, boundaries, u, dt, A, B, C, D, z, freq, dt_bias, *scales):
    sequences, weights = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    sequences["grad"] = rows(grad, sequences["u"].dtype)
    grads = {
        f"d{name}": torch.empty(x.shape, dtype=x.dtype) for name, x in (sequences | weights).items() if name != "grad"
    }
    _run("defocus_scan_backward", sequences, weights, scales, grads | dict(boundaries=boundaries))
    return tuple(grads[f"d{name}"] for name in ("u", "dt", "A", "B", "C", "D", "z", "freq", "dt_bias"))


cpu_defocus_scan = register_scan("cpu", _forward, _backward, CHUNK)

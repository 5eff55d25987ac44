"""The operations at the published sizes: the one list of what a report looks at.

A kernel is found by calling its operation, so a new or a changed one needs no line here; an operation does.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backbones.kernel_report.backward import gradients
from backbones.kernel_report.cards import Card
from backbones.kernel_report.record import Recorder, Step
from backbones.mixers.mamba import MambaBlock
from backbones.ops import causal_conv1d_silu, decay_attention, defocus_scan, deformable_attention, retention
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.decay_attention import DECAY_ATTENTION
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.dispatch import Operation
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN

# An image of about 1,100 pixels a side: 68² or so patches, sections filled up, and the class token.
PUBLISHED_LENGTH = 4705
_ROPE, _DELTA = 20.0, 4.57
_HEADS, _HEAD_DIMS = 12, 64


@dataclass(frozen=True)
class Call:
    """One operation at published widths.

    Attributes:
        name: Of the operation.
        operation: Its backends.
        forward: Given (b, l, dtype), its output; inputs are made inside, on "cuda".
    """

    name: str
    operation: Operation
    forward: Callable[[int, int, torch.dtype], Tensor]


def _rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda", requires_grad=True)


def _scan(b, l, dtype, **sizes):
    arch = dataclasses.replace(MambaBlock.archs["base"], **sizes)
    d, n = arch.inner_dims, arch.state_dims
    # As the mixer hands them over: z is half of a projection, B and C parts of another one.
    z = _rows(b, l, 2 * d, dtype=dtype).chunk(2, -1)[1]
    _, B, C = _rows(b, l, arch.dt_rank + 2 * n, dtype=dtype).split([arch.dt_rank, n, n], -1)
    u, dt = (_rows(b, l, d, dtype=dtype) for _ in range(2))
    inputs = (u, dt, _rows(d, n), B, C, _rows(d), z, _rows(n), _rows(d))
    group = arch.norm_group_dims
    return defocus_scan(*inputs, rope_scale=_ROPE, delta_scale=_DELTA, norm_group_dims=group, backend="triton")


def _convolution(b, l, dtype):
    arch = MambaBlock.archs["base"]
    x = _rows(b, l, 2 * arch.inner_dims, dtype=dtype).chunk(2, -1)[0]
    weight, bias = _rows(arch.inner_dims, 1, arch.conv_kernel), _rows(arch.inner_dims)
    return causal_conv1d_silu(x, weight, bias, backend="triton")


def _heads(b, l, dtype, values):
    q, k = (_rows(b, l, _HEADS, _HEAD_DIMS, dtype=dtype) for _ in range(2))
    return q, k, _rows(b, l, _HEADS, values, dtype=dtype), _rows(_HEADS), _rows(_HEADS, _HEAD_DIMS // 2)


def _attention(b, l, dtype):
    inputs = _heads(b, l, dtype, _HEAD_DIMS)
    return decay_attention(*inputs, rope_scale=_ROPE, delta_scale=_DELTA, backend="triton")


def _bidirectional_attention(b, l, dtype):
    inputs = _heads(b, l, dtype, _HEAD_DIMS)
    return decay_attention(*inputs, rope_scale=_ROPE, delta_scale=_DELTA, causal=False, backend="triton")


def _retention(b, l, dtype):
    inputs = _heads(b, l, dtype, 2 * _HEAD_DIMS)
    return retention(*inputs, rope_scale=_ROPE, delta_scale=_DELTA, backend="triton")


def _deformable(b, l, dtype):
    # DINO's encoder: four maps, each half as high and wide as the one before, from stride 8 on.
    side = max(round((l * 4) ** 0.5), 8)
    shapes = [(side >> k, side >> k) for k in range(4)]
    tokens = sum(h * w for h, w in shapes)
    value = _rows(b, tokens, 8, 32, dtype=dtype)
    locations, weights = _rows(b, tokens, 8, 4, 4, 2), _rows(b, tokens, 8, 4, 4)
    return deformable_attention(value, shapes, locations, weights, backend="triton")


CALLS = (
    Call("selective_scan", DEFOCUS_SCAN, _scan),
    Call("causal_conv1d", CAUSAL_CONV1D, _convolution),
    Call("decay_attention", DECAY_ATTENTION, _attention),
    Call("decay_attention, not causal", DECAY_ATTENTION, _bidirectional_attention),
    Call("retention", RETENTION, _retention),
    Call("deformable_attention", DEFORMABLE_ATTENTION, _deformable),
)

# Sizes that nobody published, at which a kernel may run out of registers.
EXTREMES = (
    Call("selective_scan of 64 states", DEFOCUS_SCAN, partial(_scan, state_dims=64)),
    Call("selective_scan of one norm group", DEFOCUS_SCAN, partial(_scan, norm_group_dims=1536)),
)


def has_kernels(call: Call) -> bool:
    """Whether Triton serves the operation at all."""
    return "triton" in call.operation.backends


def record(call: Call, card: Card, b: int, l: int, dtype: torch.dtype) -> tuple[list[Step], int]:
    """What forward and backward of one call start, and the number of its output's elements."""
    with Recorder(card).recording() as recorder:
        outputs = [call.forward(b, l, dtype)]
        elements = outputs[0].numel()
        gradients(outputs.pop())
        return list(recorder.steps), elements

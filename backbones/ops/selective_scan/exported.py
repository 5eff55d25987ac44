"""The De-focus scan as a program to export: in parallel within a chunk of tokens, chunk by chunk along the sequence.

A chunk is cut into rows. All rows advance together, from no state, and with them the product of their decays; the few
rows then pass on their last states; and each token takes what its row found, times its product. A product is of numbers
up to 1: it can vanish, as what it stands for does, and never overflows. The states of one chunk exist at a time.
"""

import math
import struct

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.exported import cut, has_scan, join, over_chunks
from backbones.ops.selective_scan.levels import scan_in_levels
from backbones.ops.selective_scan.naive import group_rms_norm, quarter_turn

# By timing in ONNX Runtime, on 1,536 channels of 16 states: with more rows the states of a step leave the cache.
ROWS, COLUMNS = 4, 4
# Steps of a turn in the coarse part of a frequency: times 8,000 turns of positions still 24 bits, those of fp32.
COARSE = 2.0**11


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), exact to the last bits for small steps too, by operators that every runtime has in vectors.

    ONNX has no log1p, and ONNX Runtime's Softplus takes ten times as long.
    """
    small = torch.exp(-x.abs())
    above_one = 1 + small
    # Dividing by what was really added takes out the rounding of 1 + small.
    rounded = torch.where(above_one == 1, torch.ones_like(small), above_one - 1)
    log1p = torch.where(above_one == 1, small, torch.log(above_one) * (small / rounded))
    return x.clamp_min(0) + log1p


def phase(length: int, freq: Tensor, rope_scale: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `(l, n)` of the angle of each position, as exact for the last of thousands as for the first.

    An angle of hundreds of turns in fp32 has lost the bits that count. A turn's share is exact for the coarse part of a
    frequency, whose few bits times a position fit into fp32, and what remains is small.
    """
    # In two parts that fp32 holds: exporters write a number in a program in fp32, whatever it is multiplied with.
    a_radian = 1 / (2 * math.pi * rope_scale)
    high = _in_fp32(a_radian)
    turns = freq.double() * high + freq.double() * (a_radian - high)
    coarse = (turns * COARSE).round() / COARSE
    fine = (turns - coarse).to(freq.dtype)
    position = torch.arange(length, device=freq.device, dtype=freq.dtype)[:, None]
    whole = position * coarse.to(freq.dtype)
    angle = 2 * math.pi * ((whole - whole.round()) + position * fine)
    return angle.cos(), angle.sin()


def _in_fp32(number: float) -> float:
    """The number of fp32 next to a Python number."""
    return struct.unpack("f", struct.pack("f", number))[0]


def _scan_chunk(state: Tensor, chunk: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk of the recurrence.

    Args:
        state: Before the chunk, `(b, n, d)`.
        chunk: Δ, Δu, B and C side by side, `(b, t, 2 d + 2 n)`.
        A: Decay rates, `(n, d)`.

    Returns:
        The state after the chunk, and y `(b, t, d)`.
    """
    n, d = A.shape
    delta, x, B, C = chunk.unflatten(1, (ROWS, COLUMNS)).split([d, d, n, n], dim=-1)
    states: list[Tensor] = []
    products: list[Tensor] = []
    for i in range(COLUMNS):
        decay = torch.exp(delta[:, :, i, None] * A)
        added = B[:, :, i, :, None] * x[:, :, i, None]
        states.append(decay * states[-1] + added if states else added)
        products.append(decay * products[-1] if products else decay)
    befores = []
    for last, product in zip(states[-1].unbind(1), products[-1].unbind(1), strict=True):
        befores.append(state)
        state = product * state + last
    before = torch.stack(befores, 1)
    y = [
        torch.matmul(C[:, :, i, None], own + product * before)
        for i, (own, product) in enumerate(zip(states, products, strict=True))
    ]
    return state, torch.cat(y, 2).flatten(1, 2)


def exported_defocus_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    freq: Tensor,
    dt_bias: Tensor,
    rope_scale: float,
    delta_scale: float,
    norm_group_dims: int,
) -> Tensor:
    """See `defocus_scan`."""
    out_dtype, length = u.dtype, u.shape[1]
    work = torch.promote_types(u.dtype, torch.float32)
    u, dt, z, A, D, freq, dt_bias = (x.to(work) for x in (u, dt, z, A, D, freq, dt_bias))
    cos, sin = phase(length, freq, rope_scale)
    B, C = (x.to(work) * cos + quarter_turn(x.to(work)) * sin for x in (B, C))
    delta = softplus(dt + dt_bias) / delta_scale
    rates = A.t().contiguous()
    if has_scan():
        chunks = cut(torch.cat((delta, delta * u, B, C), dim=-1), ROWS * COLUMNS)
        state = u.new_zeros(u.shape[0], A.shape[1], u.shape[2])
        y = join(over_chunks(_scan_chunk, state, chunks, [rates]), length)
    else:
        y = scan_in_levels(delta, delta * u, rates, B, C)
    return ((group_rms_norm(y, norm_group_dims) + D * u) * F.silu(z)).to(out_dtype)

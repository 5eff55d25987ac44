"""The rotary phase of attention and retention as Triton kernels: queries and keys turned once, and the way back.

What multiplies queries and keys meets each of them as often as there are blocks on the other side. Turned there, each
time, they would cost sines and float64 products by the square of the length; turned before, by its first power, and a
copy of both that no gradient keeps.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.dispatch import check_triton_dtypes
from backbones.ops.gpu import ceil_div, next_power_of_2
from backbones.ops.layout import rows_adjacent

BLOCK_T = 32

_TWO_PI = tl.constexpr(2 * math.pi)


@triton.jit
def _cos_sin(token, turns_ptr, pairs, PAIRS: tl.constexpr):
    pair = tl.arange(0, PAIRS)
    turns_per_token = tl.load(turns_ptr + pair, mask=pair < pairs, other=0.0)
    # Whole turns are dropped before fp32: an angle of thousands of radians would be right to 3e-4 in it.
    turns = token.to(tl.float64)[:, None] * turns_per_token[None, :]
    angle = (turns - tl.floor(turns + 0.5)).to(tl.float32) * _TWO_PI
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _even_odd(x):
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def _turned(x, cos, sin):
    even, odd = _even_odd(x)
    return tl.interleave(even * cos - odd * sin, odd * cos + even * sin)


@triton.jit(do_not_specialize=["l"])
def _turn_kernel(
    q_ptr, k_ptr, turns_ptr, turned_q_ptr, turned_k_ptr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, l, dims,
    BLOCK_T: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.arange(0, DIMS)
    cos, sin = _cos_sin(token, turns_ptr + head * (dims // 2), dims // 2, DIMS // 2)
    inside = (token < l)[:, None]
    mask = inside & (channel < dims)[None, :]
    q_tile = q_ptr + batch * q_batch + head * q_head + token[:, None] * q_token + channel[None, :]
    k_tile = k_ptr + batch * k_batch + head * k_head + token[:, None] * k_token + channel[None, :]
    q = tl.load(q_tile, mask=mask, other=0.0).to(tl.float32)
    k = tl.load(k_tile, mask=mask, other=0.0).to(tl.float32)
    at = ((batch * tl.num_programs(1) + head) * l + token)[:, None] * DIMS + channel[None, :]
    # The channels that fill up to a power of two are written, too: nobody after has to mask them.
    tl.store(turned_q_ptr + at, _turned(q, cos, sin).to(turned_q_ptr.dtype.element_ty), mask=inside)
    tl.store(turned_k_ptr + at, _turned(k, cos, sin).to(turned_k_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["l"])
def _turn_back_kernel(
    turned_q_ptr, turned_k_ptr, dturned_q_ptr, dturned_k_ptr, turns_ptr, dq_ptr, dk_ptr, dfreq_ptr, l, dims,
    BLOCK_T: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Gradients of q and k, and a partial sum of rope_scale·dfreq by program."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel, pair = tl.arange(0, DIMS), tl.arange(0, DIMS // 2)
    pairs = dims // 2
    cos, sin = _cos_sin(token, turns_ptr + head * pairs, pairs, DIMS // 2)
    inside = (token < l)[:, None]
    at = ((batch * heads + head) * l + token)[:, None] * DIMS + channel[None, :]
    out = ((batch * l + token) * heads + head)[:, None] * dims + channel[None, :]
    mask = inside & (channel < dims)[None, :]

    dq = tl.load(dturned_q_ptr + at, mask=inside, other=0.0)
    dk = tl.load(dturned_k_ptr + at, mask=inside, other=0.0)
    tl.store(dq_ptr + out, _turned(dq, cos, -sin).to(dq_ptr.dtype.element_ty), mask=mask)
    tl.store(dk_ptr + out, _turned(dk, cos, -sin).to(dk_ptr.dtype.element_ty), mask=mask)

    # What queries and keys say of an angle cancels but for the distance between them. So it takes the turned vectors
    # as they were multiplied, rounded, and their gradients in fp32.
    q_0, q_1 = _even_odd(tl.load(turned_q_ptr + at, mask=inside, other=0.0).to(tl.float32))
    k_0, k_1 = _even_odd(tl.load(turned_k_ptr + at, mask=inside, other=0.0).to(tl.float32))
    dq_0, dq_1 = _even_odd(dq)
    dk_0, dk_1 = _even_odd(dk)
    dangle = (q_0 * dq_1 - q_1 * dq_0) + (k_0 * dk_1 - k_1 * dk_0)
    dfreq = tl.sum(dangle * token.to(tl.float32)[:, None], 0)
    part = (batch * tl.num_programs(0) + tl.program_id(0)) * heads + head
    tl.store(dfreq_ptr + part * pairs + pair, dfreq, mask=pair < pairs)


def working_dtype(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    """The dtype that q, k and v are multiplied in: their own, or fp32 where they differ.

    Raises:
        ValueError: One of them is neither fp32, bf16 nor fp16.
    """
    check_triton_dtypes(q=q, k=k, v=v)
    return q.dtype if q.dtype == k.dtype == v.dtype else torch.float32


def padded(dims: int) -> int:
    """Channels of a head in the kernels: a power of two that tensor cores take."""
    return max(16, next_power_of_2(dims))


def _turns_per_token(freq, rope_scale):
    return (freq.double() / (2 * math.pi * rope_scale)).contiguous()


def turn(q: Tensor, k: Tensor, freq: Tensor, rope_scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their phase.

    Args:
        q: Queries, `(b, l, h, k)`.
        k: Keys, `(b, l, h, k)`.
        freq: θ, `(h, k / 2)`, radians per position.
        rope_scale: Divides the position.
        dtype: Of the result.

    Returns:
        Both, `(b, h, l, padded(k))`, contiguous, the added channels zero.
    """
    q, k = rows_adjacent(q), rows_adjacent(k)
    b, l, h, dims = q.shape
    turned_q, turned_k = (torch.empty(b, h, l, padded(dims), dtype=dtype, device=q.device) for _ in range(2))
    _turn_kernel[(ceil_div(l, BLOCK_T), h, b)](
        q, k, _turns_per_token(freq, rope_scale), turned_q, turned_k, *q.stride()[:3], *k.stride()[:3], l, dims,
        BLOCK_T=BLOCK_T, DIMS=padded(dims), num_warps=4,
    )  # fmt: skip
    return turned_q, turned_k


def turn_back(
    turned_q: Tensor,
    turned_k: Tensor,
    dturned_q: Tensor,
    dturned_k: Tensor,
    freq: Tensor,
    rope_scale: float,
    dq: Tensor,
    dk: Tensor,
) -> Tensor:
    """Gradients of what `turn` was given, from those of what it gave.

    Args:
        turned_q: As `turn` gave it.
        turned_k: As `turn` gave it.
        dturned_q: Gradient of ``turned_q``, fp32, contiguous.
        dturned_k: Gradient of ``turned_k``, fp32, contiguous.
        freq: As `turn` was given it.
        rope_scale: As `turn` was given it.
        dq: Takes the gradient of q, `(b, l, h, k)`, contiguous.
        dk: Takes the gradient of k, likewise.

    Returns:
        The gradient of θ, `(h, k / 2)`, float64.
    """
    b, l, h, dims = dq.shape
    tiles = ceil_div(l, BLOCK_T)
    dfreq = torch.empty(b, tiles, h, dims // 2, dtype=torch.float32, device=dq.device)
    _turn_back_kernel[(tiles, h, b)](
        turned_q, turned_k, dturned_q, dturned_k, _turns_per_token(freq, rope_scale), dq, dk, dfreq, l, dims,
        BLOCK_T=BLOCK_T, DIMS=padded(dims), num_warps=4,
    )  # fmt: skip
    return dfreq.sum((0, 1), dtype=torch.float64) / rope_scale

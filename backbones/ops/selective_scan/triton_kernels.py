"""The De-focus scan as Triton kernels, forward and backward.

The sequence is cut into segments of whole chunks, as many as fill the GPU; the state is kept once a chunk. Forward:

1. `_turn_kernel` gives B and C their phase, once for all channels.
2. `_segment_state_kernel` scans every segment from zero: its end state, and the sum of its step sizes.
3. `_carry_kernel` joins the segments: the true state before each.
4. `_output_kernel` scans every segment from its true state and keeps the state before each chunk.

Backward goes forwards through each segment to rebuild y, the scale of its norm, and what the segment passes to the one
before it (`_output_backward_kernel`); joins the segments from the end (`_carry_kernel`); and goes backwards through
each segment (`_scan_backward_kernel`), with the state before every fourth token in a scratch buffer. Sums over
channels, segments and samples are of partial sums in a fixed order, never atomic: two runs give the same bits.

Nothing but what depends on the state is computed token by token: a program keeps tiles of `[n, BLOCK_D]` numbers in
registers, eight numbers a thread. What depends on the channel alone (step sizes, norm, gate) is computed for
tiles of tokens before and after, and handed over in scratch buffers, whose size does not depend on the sequence.

A vector of a tile has fewer elements than the program has threads, so that the compiler loads it straight into the
layout of the tile. Up to 16 states a program is one warp, and a sum over states or channels stays within it; the one
barrier of four tokens keeps what is written from overtaking what is read.
"""

# Triton knows no unpacking in a tuple.
# ruff: noqa: RUF005

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.gpu import gpu_of
from backbones.ops.selective_scan.naive import NORM_EPS
from backbones.ops.selective_scan.triton_sizes import CHUNK
from backbones.ops.triton_functions import reciprocal, sigmoid

# Channels of a tile.
BLOCK_D = 16
# Tokens of a piece, for what is not computed token by token.
PIECE = 8
# Of a thread where y is made: without this limit the compiler spills some to have fewer.
REGISTERS = 128
# Blocks of channels which a program sums the gradients of B and C over.
BLOCKS = 6
# What a program can keep in registers.
MAX_STATES = 128

_EPS = tl.constexpr(NORM_EPS)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_TWO_PI = tl.constexpr(2 * math.pi)


@triton.jit
def _step_size(dt, bias, inverse_scale):
    x = dt + bias
    e = tl.exp2(-_LOG2_E * tl.abs(x))
    # log(1 + e) = 2 artanh(e / (2 + e)) as a series; 1 + e itself would round a small e away.
    s = e * reciprocal(2.0 + e)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return (tl.maximum(x, 0.0) + 2.0 * s * series) * inverse_scale


@triton.jit
def _vector(ptr, channel, limit):
    return tl.load(ptr + channel, mask=channel < limit, other=0.0)


@triton.jit
def _piece(rows, token, stride, mask):
    return tl.load(rows + token[:, None] * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _tile_of(channel, limit, n, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where ``[n, channels]`` numbers lie in a `(d, n)` matrix from a channel on, and which of them are there."""
    state = tl.arange(0, BLOCK_N)[:, None]
    at = (channel + tl.arange(0, BLOCK_D))[None, :]
    return at * n + state, (at < limit) & (state < n)


@triton.jit
def _four_rows(rows, stride):
    return tl.load(rows), tl.load(rows + stride), tl.load(rows + 2 * stride), tl.load(rows + 3 * stride)


@triton.jit
def _advance(h, rate, delta, input, B):
    """The state after a token; ``rate`` is A in powers of two."""
    return tl.exp2(delta[None, :] * rate) * h + input[None, :] * B[:, None]


@triton.jit
def _prepare_steps(
    dt_rows, u_rows, step_rows, dt_token, u_token, steps, bias, channel_mask, inverse_scale,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Δ and Δu of a chunk to scratch: zero, which changes no state, where a token or channel is not there."""
    for start in range(0, CHUNK, PIECE):
        token = start + tl.arange(0, PIECE)
        mask = (token < steps)[:, None] & channel_mask[None, :]
        delta = _step_size(_piece(dt_rows[None, :], token, dt_token, mask), bias[None, :], inverse_scale)
        delta = tl.where(mask, delta, 0.0)
        rows = step_rows[None, :] + token[:, None] * WIDTH
        tl.store(rows, delta)
        tl.store(rows + CHUNK * WIDTH, delta * _piece(u_rows[None, :], token, u_token, mask))
    # What one thread wrote another reads.
    tl.debug_barrier()


@triton.jit
def _scan_chunk(
    h, rate, step_rows, y_rows, B_rows, C_rows, kept,
    KEEP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y of a chunk to scratch, on request the state before every fourth token, too. Returns that after the chunk."""
    for t in range(0, CHUNK, 4):
        deltas = _four_rows(step_rows + t * WIDTH, WIDTH)
        inputs = _four_rows(step_rows + (CHUNK + t) * WIDTH, WIDTH)
        Bs = _four_rows(B_rows + t * BLOCK_N, BLOCK_N)
        Cs = _four_rows(C_rows + t * BLOCK_N, BLOCK_N)
        if KEEP:
            tl.store(kept + t // 4 * (BLOCK_N * BLOCK_D), h)
        # y may take the place of Δu.
        tl.debug_barrier()
        for i in tl.static_range(4):
            h = _advance(h, rate, deltas[i], inputs[i], Bs[i])
            tl.store(y_rows + (t + i) * WIDTH, tl.sum(h * Cs[i][:, None], 0))
    tl.debug_barrier()
    return h


@triton.jit
def _cos_sin(token, freq, TURNS: tl.constexpr):
    # Whole turns are dropped before fp32: an angle of thousands of radians would be right to 3e-4 in it.
    turns = token.to(tl.float64)[:, None] * (freq.to(tl.float64) * TURNS)[None, :]
    angle = (turns - tl.floor(turns + 0.5)).to(tl.float32) * _TWO_PI
    return tl.cos(angle), tl.sin(angle)


@triton.jit(do_not_specialize=["l", "padded"])
def _turn_kernel(
    B_ptr, C_ptr, freq_ptr, turned_B_ptr, turned_C_ptr,
    B_batch, B_token, C_batch, C_token, l, padded, n,
    TURNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """B and C in their phase, with zeros up to whole chunks and to a power of two states."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    even = 2 * tl.arange(0, BLOCK_PAIRS)
    cos_0, sin_0 = _cos_sin(token, tl.load(freq_ptr + even, mask=even < n, other=0.0), TURNS)
    cos_1, sin_1 = _cos_sin(token, tl.load(freq_ptr + even + 1, mask=even < n, other=0.0), TURNS)
    mask = (token < l)[:, None] & (even < n)[None, :]

    B = B_ptr + batch * B_batch + token[:, None] * B_token + even[None, :]
    C = C_ptr + batch * C_batch + token[:, None] * C_token + even[None, :]
    turned = (batch * padded + token)[:, None] * (2 * BLOCK_PAIRS) + even[None, :]
    inside = (token < padded)[:, None]
    B_0 = tl.load(B, mask=mask, other=0.0).to(tl.float32)
    B_1 = tl.load(B + 1, mask=mask, other=0.0).to(tl.float32)
    C_0 = tl.load(C, mask=mask, other=0.0).to(tl.float32)
    C_1 = tl.load(C + 1, mask=mask, other=0.0).to(tl.float32)
    tl.store(turned_B_ptr + turned, B_0 * cos_0 - B_1 * sin_0, mask=inside)
    tl.store(turned_B_ptr + turned + 1, B_1 * cos_1 + B_0 * sin_1, mask=inside)
    tl.store(turned_C_ptr + turned, C_0 * cos_0 - C_1 * sin_0, mask=inside)
    tl.store(turned_C_ptr + turned + 1, C_1 * cos_1 + C_0 * sin_1, mask=inside)


@triton.jit(do_not_specialize=["l", "padded"])
def _turn_backward_kernel(
    B_ptr, C_ptr, freq_ptr, dturned_B_ptr, dturned_C_ptr, dB_ptr, dC_ptr, dfreq_ptr,
    B_batch, B_token, C_batch, C_token, dB_batch, dB_token, dC_batch, dC_token, l, padded, n, parts, inverse_scale,
    TURNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C, summed over parts of the channels; a partial sum of that of freq by program."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    even = 2 * tl.arange(0, BLOCK_PAIRS)
    mask = (token < l)[:, None] & (even < n)[None, :]
    at = (batch * padded + token)[:, None] * (2 * BLOCK_PAIRS) + even[None, :]
    part_stride = tl.num_programs(1).to(tl.int64) * padded * (2 * BLOCK_PAIRS)

    gB_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gB_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    for i in range(0, parts):
        part = at + i * part_stride
        gB_0 += tl.load(dturned_B_ptr + part, mask=mask, other=0.0)
        gB_1 += tl.load(dturned_B_ptr + part + 1, mask=mask, other=0.0)
        gC_0 += tl.load(dturned_C_ptr + part, mask=mask, other=0.0)
        gC_1 += tl.load(dturned_C_ptr + part + 1, mask=mask, other=0.0)

    B = B_ptr + batch * B_batch + token[:, None] * B_token + even[None, :]
    C = C_ptr + batch * C_batch + token[:, None] * C_token + even[None, :]
    B_0 = tl.load(B, mask=mask, other=0.0).to(tl.float32)
    B_1 = tl.load(B + 1, mask=mask, other=0.0).to(tl.float32)
    C_0 = tl.load(C, mask=mask, other=0.0).to(tl.float32)
    C_1 = tl.load(C + 1, mask=mask, other=0.0).to(tl.float32)
    cos_0, sin_0 = _cos_sin(token, tl.load(freq_ptr + even, mask=even < n, other=0.0), TURNS)
    cos_1, sin_1 = _cos_sin(token, tl.load(freq_ptr + even + 1, mask=even < n, other=0.0), TURNS)

    dB = dB_ptr + batch * dB_batch + token[:, None] * dB_token + even[None, :]
    dC = dC_ptr + batch * dC_batch + token[:, None] * dC_token + even[None, :]
    tl.store(dB, (gB_0 * cos_0 + gB_1 * sin_1).to(dB_ptr.dtype.element_ty), mask=mask)
    tl.store(dB + 1, (gB_1 * cos_1 - gB_0 * sin_0).to(dB_ptr.dtype.element_ty), mask=mask)
    tl.store(dC, (gC_0 * cos_0 + gC_1 * sin_1).to(dC_ptr.dtype.element_ty), mask=mask)
    tl.store(dC + 1, (gC_1 * cos_1 - gC_0 * sin_0).to(dC_ptr.dtype.element_ty), mask=mask)

    dangle_0 = -gB_0 * (B_1 * cos_0 + B_0 * sin_0) - gC_0 * (C_1 * cos_0 + C_0 * sin_0)
    dangle_1 = gB_1 * (B_0 * cos_1 - B_1 * sin_1) + gC_1 * (C_0 * cos_1 - C_1 * sin_1)
    dfreq = dfreq_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * n + even
    position = token.to(tl.float32)[:, None] * inverse_scale
    tl.store(dfreq, tl.sum(dangle_0 * position, 0), mask=even < n)
    tl.store(dfreq + 1, tl.sum(dangle_1 * position, 0), mask=even < n)


@triton.jit(do_not_specialize=["segments", "segment_chunks", "chunks", "items"])
def _segment_state_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, scratch_ptr, ends_ptr, totals_ptr,
    u_batch, u_token, dt_batch, dt_token, d, n, chunks, segments, segment_chunks, blocks, items, inverse_scale,
    CHUNK: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """End state of every segment but the last, started from zero, and the sum of its step sizes."""
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    step_rows = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * CHUNK * BLOCK_D) + lane

    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        first_channel = item % blocks * BLOCK_D
        segment = (item // blocks % (segments - 1)).to(tl.int64)
        batch = (item // blocks // (segments - 1)).to(tl.int64)
        channel = first_channel + lane
        channel_mask = channel < d
        tile, tile_mask = _tile_of(first_channel, d, n, BLOCK_N, BLOCK_D)
        bias = _vector(bias_ptr, channel, d)
        rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
        h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_D], tl.float32)

        for i in range(0, segment_chunks):
            chunk = segment * segment_chunks + i
            u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token + channel
            dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token + channel
            B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N) + state
            _prepare_steps(
                dt_rows, u_rows, step_rows, dt_token, u_token, CHUNK, bias, channel_mask, inverse_scale,
                BLOCK_D, CHUNK, PIECE,
            )  # fmt: skip
            for t in range(0, CHUNK, 4):
                deltas = _four_rows(step_rows + t * BLOCK_D, BLOCK_D)
                inputs = _four_rows(step_rows + (CHUNK + t) * BLOCK_D, BLOCK_D)
                Bs = _four_rows(B_rows + t * BLOCK_N, BLOCK_N)
                for k in tl.static_range(4):
                    h = _advance(h, rate, deltas[k], inputs[k], Bs[k])
                    total += deltas[k]
            tl.debug_barrier()

        boundary = batch * segments + segment
        tl.store(ends_ptr + boundary * d * n + tile, h, mask=tile_mask)
        tl.store(totals_ptr + boundary * d + channel, total, mask=channel_mask)


@triton.jit(do_not_specialize=["segments", "batch_rows", "segment_rows"])
def _carry_kernel(
    A_ptr, totals_ptr, ends_ptr, carries_ptr, d, n, segments, batch_rows, segment_rows,
    REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What enters each segment, from what each adds and how much it lets through.

    ``batch_rows`` and ``segment_rows`` are the strides of the result, in tiles of d·n; it may lie where ``ends`` is.
    """
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < d * n
    rate = tl.load(A_ptr + at, mask=mask, other=0.0) * _LOG2_E
    if REVERSE:
        outermost, step = segments - 1, -1
    else:
        outermost, step = 0, 1

    carry = tl.zeros([BLOCK], tl.float32)
    for start in range(0, segments, AHEAD):
        ends, totals = (), ()
        for i in tl.static_range(AHEAD):
            row = batch * segments + outermost + step * (start + i)
            # Compared as tensors: of two numbers the interpreter makes a Python bool, which is no mask to it.
            inside = mask & (tl.zeros([BLOCK], tl.int32) + (start + i) < segments - 1)
            ends = ends + (tl.load(ends_ptr + row * d * n + at, mask=inside, other=0.0),)
            totals = totals + (tl.load(totals_ptr + row * d + at // n, mask=inside, other=0.0),)
        for i in tl.static_range(AHEAD):
            row = batch * batch_rows + (outermost + step * (start + i)) * segment_rows
            inside = mask & (tl.zeros([BLOCK], tl.int32) + (start + i) < segments)
            tl.store(carries_ptr + row * d * n + at, carry, mask=inside)
            carry = tl.exp2(totals[i] * rate) * carry + ends[i]


@triton.jit(do_not_specialize=["l", "chunks", "segments", "segment_chunks", "items"])
def _output_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, scratch_ptr, states_ptr, out_ptr,
    u_batch, u_token, dt_batch, dt_token, z_batch, z_token,
    l, d, n, chunks, segments, segment_chunks, groups, items, inverse_scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The output of one segment and one norm group, and the state before each chunk but the first."""
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * CHUNK * WIDTH)

    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        first_channel = item % groups * GROUP
        limit = first_channel + GROUP
        segment = (item // groups % segments).to(tl.int64)
        batch = (item // groups // segments).to(tl.int64)
        first_chunk = segment * segment_chunks
        own = tl.minimum(segment_chunks, chunks - first_chunk).to(tl.int32)
        for i in range(0, own):
            chunk = first_chunk + i
            steps = tl.minimum(l - chunk * CHUNK, CHUNK).to(tl.int32)
            u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token
            dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token
            z_rows = z_ptr + batch * z_batch + chunk * CHUNK * z_token
            out_rows = out_ptr + (batch * l + chunk * CHUNK) * d
            B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N) + state
            C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N) + state
            boundary = (batch * chunks + chunk) * d * n

            for start in range(0, WIDTH, BLOCK_D):
                channel = first_channel + start + lane
                bias = _vector(bias_ptr, channel, limit)
                _prepare_steps(
                    dt_rows + channel, u_rows + channel, scratch + start + lane, dt_token, u_token, steps, bias,
                    channel < limit, inverse_scale, WIDTH, CHUNK, PIECE,
                )  # fmt: skip
                tile, tile_mask = _tile_of(first_channel + start, limit, n, BLOCK_N, BLOCK_D)
                rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
                h = tl.load(states_ptr + boundary + tile, mask=tile_mask, other=0.0)
                step_rows = scratch + start + lane
                h = _scan_chunk(
                    h, rate, step_rows, step_rows + CHUNK * WIDTH, B_rows, C_rows, 0,
                    False, WIDTH, CHUNK, BLOCK_N, BLOCK_D,
                )  # fmt: skip
                if i + 1 < own:
                    tl.store(states_ptr + boundary + d * n + tile, h, mask=tile_mask)

            for start_token in range(0, CHUNK, PIECE):
                token = start_token + tl.arange(0, PIECE)
                y_rows = scratch + (CHUNK + token[:, None]) * WIDTH
                square = tl.zeros([PIECE], tl.float32)
                for start in range(0, WIDTH, BLOCK_D):
                    # Zero where a channel is not there.
                    y = tl.load(y_rows + (start + lane)[None, :])
                    square += tl.sum(y * y, 1)
                scale = tl.rsqrt(square / GROUP + _EPS)
                for start in range(0, WIDTH, BLOCK_D):
                    channel = first_channel + start + lane
                    mask = (token < steps)[:, None] & (channel < limit)[None, :]
                    D = _vector(D_ptr, channel, limit)
                    u = _piece((u_rows + channel)[None, :], token, u_token, mask)
                    z = _piece((z_rows + channel)[None, :], token, z_token, mask)
                    y = tl.load(y_rows + (start + lane)[None, :]) * scale[:, None]
                    out = (y + D[None, :] * u) * z * sigmoid(z)
                    out_piece = (out_rows + channel)[None, :] + token[:, None] * d
                    tl.store(out_piece, out.to(out_ptr.dtype.element_ty), mask=mask)
            tl.debug_barrier()


@triton.jit(do_not_specialize=["l", "chunks", "segments", "segment_chunks", "items"])
def _output_backward_kernel(
    grad_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, scratch_ptr,
    dz_ptr, norms_ptr, ends_ptr, totals_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token, dz_batch, dz_token,
    l, d, n, chunks, segments, segment_chunks, groups, items, inverse_scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of z; of each token and norm group the two numbers that give the gradient of y; and what each segment
    adds to the gradient of the state before it."""
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * CHUNK * WIDTH)

    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        group = item % groups
        first_channel = group * GROUP
        limit = first_channel + GROUP
        segment = (item // groups % segments).to(tl.int64)
        batch = (item // groups // segments).to(tl.int64)
        first_chunk = segment * segment_chunks
        own = tl.minimum(segment_chunks, chunks - first_chunk).to(tl.int32)
        for i in range(0, own):
            chunk = first_chunk + i
            first = chunk * CHUNK
            steps = tl.minimum(l - first, CHUNK).to(tl.int32)
            grad_rows = grad_ptr + batch * grad_batch + first * grad_token
            u_rows = u_ptr + batch * u_batch + first * u_token
            dt_rows = dt_ptr + batch * dt_batch + first * dt_token
            z_rows = z_ptr + batch * z_batch + first * z_token
            dz_rows = dz_ptr + batch * dz_batch + first * dz_token
            B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N) + state
            C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N) + state
            boundary = (batch * chunks + chunk) * d * n

            for start in range(0, WIDTH, BLOCK_D):
                channel = first_channel + start + lane
                bias = _vector(bias_ptr, channel, limit)
                _prepare_steps(
                    dt_rows + channel, u_rows + channel, scratch + start + lane, dt_token, u_token, steps, bias,
                    channel < limit, inverse_scale, WIDTH, CHUNK, PIECE,
                )  # fmt: skip
                tile, tile_mask = _tile_of(first_channel + start, limit, n, BLOCK_N, BLOCK_D)
                rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
                h = tl.load(states_ptr + boundary + tile, mask=tile_mask, other=0.0)
                step_rows = scratch + start + lane
                _scan_chunk(
                    h, rate, step_rows, step_rows + CHUNK * WIDTH, B_rows, C_rows, 0,
                    False, WIDTH, CHUNK, BLOCK_N, BLOCK_D,
                )  # fmt: skip

            for start_token in range(0, CHUNK, PIECE):
                token = start_token + tl.arange(0, PIECE)
                y_rows = scratch + (CHUNK + token[:, None]) * WIDTH
                square, product = tl.zeros([PIECE], tl.float32), tl.zeros([PIECE], tl.float32)
                for start in range(0, WIDTH, BLOCK_D):
                    channel = first_channel + start + lane
                    mask = (token < steps)[:, None] & (channel < limit)[None, :]
                    z = _piece((z_rows + channel)[None, :], token, z_token, mask)
                    grad = _piece((grad_rows + channel)[None, :], token, grad_token, mask)
                    y = tl.load(y_rows + (start + lane)[None, :])
                    square += tl.sum(y * y, 1)
                    product += tl.sum(grad * z * sigmoid(z) * y, 1)
                scale = tl.rsqrt(square / GROUP + _EPS)
                mean = product * scale / GROUP
                norms = norms_ptr + ((batch * l + first + token) * groups + group) * 2
                tl.store(norms, scale, mask=token < steps)
                tl.store(norms + 1, mean, mask=token < steps)
                for start in range(0, WIDTH, BLOCK_D):
                    channel = first_channel + start + lane
                    mask = (token < steps)[:, None] & (channel < limit)[None, :]
                    D = _vector(D_ptr, channel, limit)
                    u = _piece((u_rows + channel)[None, :], token, u_token, mask)
                    z = _piece((z_rows + channel)[None, :], token, z_token, mask)
                    grad = _piece((grad_rows + channel)[None, :], token, grad_token, mask)
                    y_piece = y_rows + (start + lane)[None, :]
                    y = tl.load(y_piece) * scale[:, None]
                    gate = sigmoid(z)
                    dz = grad * (y + D[None, :] * u) * gate * (1.0 + z * (1.0 - gate))
                    dz_piece = (dz_rows + channel)[None, :] + token[:, None] * dz_token
                    tl.store(dz_piece, dz.to(dz_ptr.dtype.element_ty), mask=mask)
                    tl.store(y_piece, scale[:, None] * (grad * z * gate - y * mean[:, None]))
            tl.debug_barrier()

            for start in range(0, WIDTH, BLOCK_D):
                channel = first_channel + start + lane
                tile, tile_mask = _tile_of(first_channel + start, limit, n, BLOCK_N, BLOCK_D)
                rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
                sums = totals_ptr + (batch * segments + segment) * d + channel
                ends = ends_ptr + (batch * segments + segment) * d * n + tile
                # Nothing of the segment before its first chunk.
                more = tl.zeros([1], tl.int32) + i > 0
                total = tl.load(sums, mask=(channel < limit) & more, other=0.0)
                end = tl.load(ends, mask=tile_mask & more[None, :], other=0.0)
                step_rows = scratch + start + lane
                # A token's gradient reaches the start of the segment through all decays up to and with its own: this
                # sum too can be taken forwards.
                for t in range(0, CHUNK, 4):
                    deltas = _four_rows(step_rows + t * WIDTH, WIDTH)
                    dys = _four_rows(step_rows + (CHUNK + t) * WIDTH, WIDTH)
                    Cs = _four_rows(C_rows + t * BLOCK_N, BLOCK_N)
                    for k in tl.static_range(4):
                        total += deltas[k]
                        end += tl.exp2(total[None, :] * rate) * (dys[k][None, :] * Cs[k][:, None])
                tl.store(sums, total, mask=channel < limit)
                tl.store(ends, end, mask=tile_mask)
            tl.debug_barrier()


@triton.jit
def _retreat(
    carry, dA, before, after, rate, row, B_row, C_row, dB_row, dC_row, adds,
    SLOT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token of the scan backwards, between the states before and after it."""
    state = tl.arange(0, BLOCK_N)
    delta, input, dy = tl.load(row), tl.load(row + SLOT), tl.load(row + 2 * SLOT)
    B, C = tl.load(B_row + state), tl.load(C_row + state)
    old_dB = tl.load(dB_row + state, mask=(state < BLOCK_N) & adds, other=0.0)
    old_dC = tl.load(dC_row + state, mask=(state < BLOCK_N) & adds, other=0.0)

    dh = carry + dy[None, :] * C[:, None]
    carry = tl.exp2(delta[None, :] * rate) * dh
    dexponent = carry * before
    dA += dexponent * delta[None, :]
    tl.store(row + 4 * SLOT, tl.sum(dh * B[:, None], 0))
    tl.store(row + 5 * SLOT, tl.sum(dexponent * rate, 0))
    # Stored as tiles, of which one column is written: as vectors they would have to change their layout.
    zeros = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    at = state[:, None] + tl.zeros([BLOCK_N, BLOCK_D], tl.int32)
    column = (tl.arange(0, BLOCK_D) == 0)[None, :]
    tl.store(dB_row + at, (old_dB + tl.sum(dh * input[None, :], 1))[:, None] + zeros, mask=column)
    tl.store(dC_row + at, (old_dC + tl.sum(after * dy[None, :], 1))[:, None] + zeros, mask=column)
    return carry, dA


@triton.jit(do_not_specialize=["l", "chunks", "segments", "segment_chunks", "items"])
def _scan_backward_kernel(
    grad_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, norms_ptr, scratch_ptr,
    carries_ptr, du_ptr, ddt_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token,
    l, d, n, chunks, segments, segment_chunks, blocks, parts, groups, items, inverse_scale,
    GROUP: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients before the scan. Partial sums by segment of dA (in place of the carries), dD and dbias; by part of the
    channels of dB and dC."""
    TILE: tl.constexpr = BLOCK_N * BLOCK_D
    SLOT: tl.constexpr = CHUNK * BLOCK_D
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    # By token: Δ; Δu; y and then its gradient; gradients of u by D, of Δu, of the exponents.
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (6 * SLOT + CHUNK // 4 * TILE)
    step_rows = scratch + lane
    # As A and the states lie in memory: with another order, registers would be rearranged.
    kept = scratch + 6 * SLOT + lane[None, :] * BLOCK_N + state[:, None]

    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        part = item % parts
        segment = (item // parts % segments).to(tl.int64)
        batch = (item // parts // segments).to(tl.int64)
        first_chunk = segment * segment_chunks
        own = tl.minimum(segment_chunks, chunks - first_chunk).to(tl.int32)
        batches = items // parts // segments
        boundary = batch * segments + segment
        for block in range(part * BLOCKS, tl.minimum((part + 1) * BLOCKS, blocks)):
            first_channel = block * BLOCK_D
            channel = first_channel + lane
            tile, tile_mask = _tile_of(first_channel, d, n, BLOCK_N, BLOCK_D)
            rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
            carry = tl.load(carries_ptr + boundary * d * n + tile, mask=tile_mask, other=0.0)
            dA = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            dD, dbias = tl.zeros([PIECE, BLOCK_D], tl.float32), tl.zeros([PIECE, BLOCK_D], tl.float32)

            for back in range(0, own):
                chunk = first_chunk + (own - 1 - back)
                first = chunk * CHUNK
                steps = tl.minimum(l - first, CHUNK).to(tl.int32)
                grad_rows = (grad_ptr + batch * grad_batch + first * grad_token + channel)[None, :]
                u_rows = u_ptr + batch * u_batch + first * u_token + channel
                dt_rows = dt_ptr + batch * dt_batch + first * dt_token + channel
                z_rows = (z_ptr + batch * z_batch + first * z_token + channel)[None, :]
                B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
                C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
                dB_rows = dB_ptr + ((part * batches + batch) * chunks + chunk) * (CHUNK * BLOCK_N)
                dC_rows = dC_ptr + ((part * batches + batch) * chunks + chunk) * (CHUNK * BLOCK_N)

                bias = _vector(bias_ptr, channel, d)
                _prepare_steps(
                    dt_rows, u_rows, step_rows, dt_token, u_token, steps, bias, channel < d, inverse_scale,
                    BLOCK_D, CHUNK, PIECE,
                )  # fmt: skip
                boundary_state = states_ptr + (batch * chunks + chunk) * d * n + tile
                after = _scan_chunk(
                    tl.load(boundary_state, mask=tile_mask, other=0.0), rate, step_rows, step_rows + 2 * SLOT,
                    B_rows + state, C_rows + state, kept, True, BLOCK_D, CHUNK, BLOCK_N, BLOCK_D,
                )  # fmt: skip

                for start in range(0, CHUNK, PIECE):
                    token = start + tl.arange(0, PIECE)
                    mask = (token < steps)[:, None] & (channel < d)[None, :]
                    z = _piece(z_rows, token, z_token, mask)
                    ungated = _piece(grad_rows, token, grad_token, mask) * z * sigmoid(z)
                    dD += ungated * _piece(u_rows[None, :], token, u_token, mask)
                    if GROUP % BLOCK_D == 0:
                        # One group for all channels.
                        norms = norms_ptr + ((batch * l + first + token) * groups + first_channel // GROUP) * 2
                        scale = tl.load(norms, mask=token < steps, other=0.0)[:, None]
                        mean = tl.load(norms + 1, mask=token < steps, other=0.0)[:, None]
                    else:
                        norms = (norms_ptr + (batch * l + first) * groups * 2 + channel // GROUP * 2)[None, :]
                        scale = _piece(norms, token, groups * 2, mask)
                        mean = _piece(norms + 1, token, groups * 2, mask)
                    y_piece = (step_rows + 2 * SLOT)[None, :] + token[:, None] * BLOCK_D
                    tl.store(y_piece, scale * (ungated - tl.load(y_piece) * scale * mean))
                    tl.store(y_piece + SLOT, ungated * _vector(D_ptr, channel, d)[None, :])
                tl.debug_barrier()

                for back_t in range(0, CHUNK, 4):
                    t = CHUNK - 4 - back_t
                    first_h = tl.load(kept + t // 4 * TILE)
                    states = (first_h,)
                    for k in tl.static_range(3):
                        row = step_rows + (t + k) * BLOCK_D
                        B = tl.load(B_rows + (t + k) * BLOCK_N + state)
                        states = states + (_advance(states[k], rate, tl.load(row), tl.load(row + SLOT), B),)
                    states = states + (after,)
                    for i in tl.static_range(4):
                        at = (t + 3 - i) * BLOCK_N
                        carry, dA = _retreat(
                            carry, dA, states[3 - i], states[4 - i], rate, step_rows + (t + 3 - i) * BLOCK_D,
                            B_rows + at, C_rows + at, dB_rows + at, dC_rows + at, block > part * BLOCKS,
                            SLOT, BLOCK_N, BLOCK_D,
                        )  # fmt: skip
                    after = first_h
                tl.debug_barrier()

                for start in range(0, CHUNK, PIECE):
                    token = start + tl.arange(0, PIECE)
                    mask = (token < steps)[:, None] & (channel < d)[None, :]
                    rows = step_rows[None, :] + token[:, None] * BLOCK_D
                    dinput, dexponent = tl.load(rows + 4 * SLOT), tl.load(rows + 5 * SLOT) * _LN_2
                    du = dinput * tl.load(rows) + tl.load(rows + 3 * SLOT)
                    dt = _piece(dt_rows[None, :], token, dt_token, mask)
                    ddelta = dinput * _piece(u_rows[None, :], token, u_token, mask) + dexponent
                    # Read again: across the loops over tokens it would take registers.
                    bias = _vector(bias_ptr, channel, d)
                    ddt = ddelta * sigmoid(dt + bias[None, :]) * inverse_scale
                    dbias += ddt
                    at = (batch * l + first + token)[:, None] * d + channel[None, :]
                    tl.store(du_ptr + at, du.to(du_ptr.dtype.element_ty), mask=mask)
                    tl.store(ddt_ptr + at, ddt.to(ddt_ptr.dtype.element_ty), mask=mask)
                tl.debug_barrier()

            tl.store(carries_ptr + boundary * d * n + tile, dA, mask=tile_mask)
            tl.store(dD_ptr + boundary * d + channel, tl.sum(dD, 0), mask=channel < d)
            tl.store(dbias_ptr + boundary * d + channel, tl.sum(dbias, 0), mask=channel < d)


def _rows_adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _prepare(u, dt, A, B, C, D, z, freq, dt_bias):
    if A.shape[1] > MAX_STATES:
        raise ValueError(
            f"the triton backend has at most {MAX_STATES} states a channel, for a program keeps all of them in "
            f'registers, got {A.shape[1]}: choose backend="torch"'
        )
    for name, x in dict(u=u, dt=dt, B=B, C=C, z=z).items():
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"the triton backend works in fp32 on fp32, bf16 or fp16, got {name} in {x.dtype}: "
                'cast it, or choose backend="torch"'
            )
    u, dt, B, C, z = (_rows_adjacent(x) for x in (u, dt, B, C, z))
    A, D, freq, dt_bias = (x.float().contiguous() for x in (A, D, freq, dt_bias))
    return u, dt, A, B, C, D, z, freq, dt_bias


def _turns(rope_scale):
    return 1 / (2 * math.pi * rope_scale)


def _turn(B, C, freq, rope_scale):
    b, l, n = B.shape
    padded, block_n = triton.cdiv(l, CHUNK) * CHUNK, triton.next_power_of_2(n)
    turned_B, turned_C = (torch.empty(b, padded, block_n, dtype=torch.float32, device=B.device) for _ in range(2))
    _turn_kernel[(triton.cdiv(padded, 32), b)](
        B, C, freq, turned_B, turned_C, *_strides(B, C), l, padded, n,
        TURNS=_turns(rope_scale), BLOCK_T=32, BLOCK_PAIRS=block_n // 2, num_warps=2,
    )  # fmt: skip
    return turned_B, turned_C


def _programs(device, block_n, scratch, registers):
    """Programs to start: those which run at a time, if their ``scratch`` floats stay in the second-level cache."""
    gpu, warps = gpu_of(device), _warps(block_n)
    # A warp has 32 threads, and lives on one of four schedulers, which share the registers.
    resident = 4 * (gpu.registers // 4 // 32 // registers) // warps
    fitting = gpu.l2_bytes * 3 // 4 // (gpu.multiprocessors * scratch * 4)
    # Four warps keep the four schedulers of a multiprocessor at work.
    return gpu.multiprocessors * max(min(resident, fitting), triton.cdiv(4, warps))


def _registers(device, block_n):
    """The most registers of a thread in the last pass of backward: from Hopper on a third fewer need no spills.

    With 168 a scheduler holds three warps, with one more it would hold two.
    """
    if block_n <= 16:
        return 168 if gpu_of(device).capability >= 90 else 255
    return min(2048 // _warps(block_n), 255)


def _warps(block_n):
    # Eight numbers of a tile a thread; of tiles whose sums leave the warp anyway four, for want of registers.
    return max(block_n * BLOCK_D // (256 if block_n <= 16 else 128), 1)


def _backward_scratch(block_n):
    return CHUNK * BLOCK_D * 6 + CHUNK // 4 * block_n * BLOCK_D


def _cut(b, l, d, n, device):
    """Chunks of a segment, and segments: as many as can be worked on at a time, by the pass that takes fewest."""
    block_n, chunks = triton.next_power_of_2(n), triton.cdiv(l, CHUNK)
    last = _programs(device, block_n, _backward_scratch(block_n), _registers(device, block_n))
    # Those that make y take a norm group at a time: 64 channels, as published.
    others = _programs(device, block_n, 2 * CHUNK * 64, REGISTERS)
    segments = min(last // triton.cdiv(d, BLOCK_D * BLOCKS), others // triton.cdiv(d, 64)) // max(b, 1)
    segment_chunks = triton.cdiv(chunks, max(segments, 1))
    return segment_chunks, triton.cdiv(chunks, segment_chunks)


def _scratch(device, items, block_n, size, registers=REGISTERS):
    """A row for each program to start."""
    programs = min(_programs(device, block_n, size, registers), items)
    return torch.empty(programs, size, dtype=torch.float32, device=device)


def _carry(A, totals, ends, carries, segment_rows, reverse):
    (b, segments, d, n), batch_rows = ends.shape, carries.shape[1]
    _carry_kernel[(triton.cdiv(d * n, 128), b)](
        A, totals, ends, carries, d, n, segments, batch_rows, segment_rows,
        REVERSE=reverse, AHEAD=8, BLOCK=128, num_warps=1,
    )  # fmt: skip


def forward(
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
) -> tuple[Tensor, Tensor]:
    """See `register_scan`.

    Raises:
        ValueError: A sequence in another dtype than fp32, bf16 and fp16.
    """
    u, dt, A, B, C, D, z, freq, dt_bias = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    (b, l, d), n = u.shape, A.shape[1]
    chunks, groups = triton.cdiv(l, CHUNK), d // norm_group_dims
    segment_chunks, segments = _cut(b, l, d, n, u.device)
    block_n = triton.next_power_of_2(n)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        B, C = _turn(B, C, freq, rope_scale)
        ends, totals = torch.empty(b, segments, d, n, **fp32), torch.empty(b, segments, d, **fp32)
        common = dict(CHUNK=CHUNK, PIECE=PIECE, BLOCK_N=block_n, BLOCK_D=BLOCK_D, num_warps=_warps(block_n))
        if segments > 1:
            blocks = triton.cdiv(d, BLOCK_D)
            items = b * (segments - 1) * blocks
            # It makes no y and needs fewer registers: 69 to 77 from Hopper on.
            scratch = _scratch(u.device, items, block_n, 2 * CHUNK * BLOCK_D, registers=80)
            _segment_state_kernel[(len(scratch),)](
                u, dt, A, B, dt_bias, scratch, ends, totals,
                *_strides(u, dt), d, n, chunks, segments, segment_chunks, blocks, items, 1 / delta_scale, **common,
            )  # fmt: skip
        states = torch.empty(b, chunks, d, n, **fp32)
        _carry(A, totals, ends, states, segment_chunks, reverse=False)
        width = triton.cdiv(norm_group_dims, BLOCK_D) * BLOCK_D
        items = b * segments * groups
        scratch = _scratch(u.device, items, block_n, 2 * CHUNK * width)
        out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        _output_kernel[(len(scratch),)](
            u, dt, A, B, C, D, z, dt_bias, scratch, states, out,
            *_strides(u, dt, z), l, d, n, chunks, segments, segment_chunks, groups, items, 1 / delta_scale,
            GROUP=norm_group_dims, WIDTH=width, maxnreg=REGISTERS if width <= 64 else None, **common,
        )  # fmt: skip
    return out, states


def backward(
    grad: Tensor,
    states: Tensor,
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
    dz: Tensor | None = None,
    dB: Tensor | None = None,
    dC: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """See `register_scan`; where ``dz``, ``dB`` or ``dC`` are given, these gradients are written there."""
    grad, states = _rows_adjacent(grad), states.contiguous()
    u, dt, A, B, C, D, z, freq, dt_bias = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    (b, l, d), n = u.shape, A.shape[1]
    chunks, groups = triton.cdiv(l, CHUNK), d // norm_group_dims
    segment_chunks, segments = _cut(b, l, d, n, u.device)
    block_n = triton.next_power_of_2(n)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        turned_B, turned_C = _turn(B, C, freq, rope_scale)
        dz = torch.empty(b, l, d, dtype=z.dtype, device=z.device) if dz is None else dz
        norms = torch.empty(b, l, groups, 2, **fp32)
        ends, totals = torch.empty(b, segments, d, n, **fp32), torch.empty(b, segments, d, **fp32)
        common = dict(CHUNK=CHUNK, PIECE=PIECE, BLOCK_N=block_n, BLOCK_D=BLOCK_D, num_warps=_warps(block_n))
        width = triton.cdiv(norm_group_dims, BLOCK_D) * BLOCK_D
        items = b * segments * groups
        scratch = _scratch(u.device, items, block_n, 2 * CHUNK * width)
        _output_backward_kernel[(len(scratch),)](
            grad, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, scratch, dz, norms, ends, totals,
            *_strides(grad, u, dt, z, dz), l, d, n, chunks, segments, segment_chunks, groups, items, 1 / delta_scale,
            GROUP=norm_group_dims, WIDTH=width, maxnreg=REGISTERS, **common,
        )  # fmt: skip
        # In place: what a segment adds is read before what enters it is written.
        _carry(A, totals, ends, ends, 1, reverse=True)

        blocks, parts = triton.cdiv(d, BLOCK_D), triton.cdiv(d, BLOCK_D * BLOCKS)
        items = b * segments * parts
        scratch = _scratch(u.device, items, block_n, _backward_scratch(block_n), _registers(u.device, block_n))
        du = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        ddt = torch.empty(b, l, d, dtype=dt.dtype, device=dt.device)
        dD_dbias = torch.empty(2, b * segments, d, **fp32)
        dturned_B, dturned_C = (torch.empty(parts, *turned_B.shape, **fp32) for _ in range(2))
        _scan_backward_kernel[(len(scratch),)](
            grad, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, norms, scratch,
            ends, du, ddt, dturned_B, dturned_C, *dD_dbias,
            *_strides(grad, u, dt, z),
            l, d, n, chunks, segments, segment_chunks, blocks, parts, groups, items, 1 / delta_scale,
            GROUP=norm_group_dims, BLOCKS=BLOCKS, maxnreg=_registers(u.device, block_n), **common,
        )  # fmt: skip

        tiles = triton.cdiv(l, 16)
        dB = torch.empty(b, l, n, dtype=B.dtype, device=B.device) if dB is None else dB
        dC = torch.empty(b, l, n, dtype=C.dtype, device=C.device) if dC is None else dC
        dfreq = torch.empty(b * tiles, n, **fp32)
        _turn_backward_kernel[(tiles, b)](
            B, C, freq, dturned_B, dturned_C, dB, dC, dfreq, *_strides(B, C, dB, dC),
            l, turned_B.shape[1], n, parts, 1 / rope_scale,
            TURNS=_turns(rope_scale), BLOCK_T=16, BLOCK_PAIRS=block_n // 2, num_warps=1,
        )  # fmt: skip
    # The sum of each segment has taken the place of what entered it.
    dA, (dD, dbias) = ends.sum((0, 1)), (x.sum(0) for x in dD_dbias)
    return du, ddt, dA, dB, dC, dD, dz, dfreq.sum(0), dbias

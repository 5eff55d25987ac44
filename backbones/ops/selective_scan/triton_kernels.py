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

A thread has one channel and all its states, up to 16 of them; a warp has 32 channels. A sum over states stays in the
thread, what depends on the channel alone is computed once, and only the gradients of B and C need the other threads:
all their sums over channels together take one exchange a number (`_sums_over_channels`). The compiler chooses this
layout by itself as long as no load or store of a tile can be done for several channels at once: so such a tile lies
with its channels next to each other, and of its address nothing is said that would allow it.

A pass waits for memory more than for anything else. So it loads all that tokens need, of the next four tokens where
registers are left, before it stores anything: no load is moved before a store. Offsets are of 32 bits from where a
chunk begins, for a pointer a token and operand would fill the registers.
"""

# Triton knows no unpacking in a tuple.
# ruff: noqa: RUF005

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.dispatch import check_triton_dtypes
from backbones.ops.gpu import ceil_div, gpu_of, next_power_of_2
from backbones.ops.layout import rows_adjacent
from backbones.ops.selective_scan.naive import NORM_EPS
from backbones.ops.selective_scan.triton_sizes import CHUNK
from backbones.ops.triton_functions import reciprocal, sigmoid

# Channels of a tile.
BLOCK_D = 32
# Tokens of a piece, for what is not computed token by token.
PIECE = 4
# Of a thread where y is made: a scheduler then holds three warps; with a fourth one some registers would be spilled.
REGISTERS = 168
# Channels which a program sums the gradients of B and C over.
PART = 96
# What a program can keep in registers.
MAX_STATES = 128

_EPS = tl.constexpr(NORM_EPS)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_TWO_PI = tl.constexpr(2 * math.pi)


@triton.jit
def _step_size(dt, bias, inverse_scale):
    x = dt + bias
    # The constant stands on the right: on the left, Triton 3.9's interpreter takes the product for a constant.
    e = tl.exp2(tl.abs(x) * -_LOG2_E)
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
def _tile_of(channel, limit, d, n, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where ``[n, channels]`` numbers lie in an `(n, d)` matrix from a channel on, and which of them are there."""
    state = tl.arange(0, BLOCK_N)[:, None]
    at = (channel + tl.arange(0, BLOCK_D))[None, :]
    return state * d + at, (at < limit) & (state < n)


@triton.jit
def _four(ptr, at, stride):
    return (
        tl.load(ptr + at),
        tl.load(ptr + (at + stride)),
        tl.load(ptr + (at + 2 * stride)),
        tl.load(ptr + (at + 3 * stride)),
    )


@triton.jit
def _four_inputs(ptr, at, stride, masks):
    """Numbers of the sequence at four tokens; zero where the token or channel is not there."""
    return (
        tl.load(ptr + at, mask=masks[0], other=0.0),
        tl.load(ptr + (at + stride), mask=masks[1], other=0.0),
        tl.load(ptr + (at + 2 * stride), mask=masks[2], other=0.0),
        tl.load(ptr + (at + 3 * stride), mask=masks[3], other=0.0),
    )


@triton.jit
def _wide(x):
    return x[0].to(tl.float32), x[1].to(tl.float32), x[2].to(tl.float32), x[3].to(tl.float32)


@triton.jit
def _two_inputs(ptr, at, stride, masks):
    return (
        tl.load(ptr + at, mask=masks[0], other=0.0).to(tl.float32),
        tl.load(ptr + (at + stride), mask=masks[1], other=0.0).to(tl.float32),
    )


@triton.jit
def _two_masks(token, steps, channel_mask):
    there = tl.zeros([1], tl.int32) + token
    return (there < steps) & channel_mask, (there + 1 < steps) & channel_mask


@triton.jit
def _four_masks(token, steps, channel_mask):
    there = tl.zeros([1], tl.int32) + token
    return (
        (there < steps) & channel_mask,
        (there + 1 < steps) & channel_mask,
        (there + 2 < steps) & channel_mask,
        (there + 3 < steps) & channel_mask,
    )


@triton.jit
def _four_steps(dts, bias, inverse_scale, masks):
    """Step sizes: zero, which changes no state, where a token or channel is not there."""
    return (
        tl.where(masks[0], _step_size(dts[0], bias, inverse_scale), 0.0),
        tl.where(masks[1], _step_size(dts[1], bias, inverse_scale), 0.0),
        tl.where(masks[2], _step_size(dts[2], bias, inverse_scale), 0.0),
        tl.where(masks[3], _step_size(dts[3], bias, inverse_scale), 0.0),
    )


@triton.jit
def _advance(h, rate, delta, input, B):
    """The state after a token; ``rate`` is A in powers of two."""
    return tl.exp2(delta[None, :] * rate) * h + input[None, :] * B[:, None]


@triton.jit
def _scan_chunk(
    h, rate, dt_rows, u_rows, channel, dt_token, u_token, steps, bias, channel_mask, inverse_scale,
    delta_rows, y_rows, place, B_rows, C_rows,
    KEEP_DELTA: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y of a chunk to scratch, on request the step sizes, too. Returns the state after the chunk."""
    state = tl.arange(0, BLOCK_N)
    next_masks = _four_masks(0, steps, channel_mask)
    next_dts = _four_inputs(dt_rows, channel, dt_token, next_masks)
    next_us = _four_inputs(u_rows, channel, u_token, next_masks)
    for t in range(0, CHUNK, 4):
        masks, dts, us = next_masks, _wide(next_dts), _wide(next_us)
        # Loaded while these are computed; none behind the chunk.
        next_masks = _four_masks(t + 4, steps, channel_mask)
        next_dts = _four_inputs(dt_rows, channel + (t + 4) * dt_token, dt_token, next_masks)
        next_us = _four_inputs(u_rows, channel + (t + 4) * u_token, u_token, next_masks)
        Bs = _four(B_rows, state + t * BLOCK_N, BLOCK_N)
        Cs = _four(C_rows, state + t * BLOCK_N, BLOCK_N)
        deltas = _four_steps(dts, bias, inverse_scale, masks)
        ys = ()
        for i in tl.static_range(4):
            h = _advance(h, rate, deltas[i], deltas[i] * us[i], Bs[i])
            ys = ys + (tl.sum(h * Cs[i][:, None], 0),)
        # At the end: no load of the next tokens can be moved before a store.
        for i in tl.static_range(4):
            tl.store(y_rows + (place + (t + i) * WIDTH), ys[i])
            if KEEP_DELTA:
                tl.store(delta_rows + (place + (t + i) * WIDTH), deltas[i])
    # What one thread wrote another reads.
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
    B_ptr, C_ptr, freq_ptr, dturned_ptr, dB_ptr, dC_ptr, dfreq_ptr,
    B_batch, B_token, C_batch, C_token, dB_batch, dB_token, dC_batch, dC_token, l, padded, n, parts, inverse_scale,
    TURNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C, summed over parts of the channels; a partial sum of that of freq by program."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    even = 2 * tl.arange(0, BLOCK_PAIRS)
    mask = (token < l)[:, None] & (even < n)[None, :]
    at = (batch * padded + token)[:, None] * (4 * BLOCK_PAIRS) + even[None, :]
    part_stride = tl.num_programs(1).to(tl.int64) * padded * (4 * BLOCK_PAIRS)

    gB_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gB_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    for i in range(0, parts):
        part = at + i * part_stride
        gB_0 += tl.load(dturned_ptr + part, mask=mask, other=0.0)
        gB_1 += tl.load(dturned_ptr + part + 1, mask=mask, other=0.0)
        gC_0 += tl.load(dturned_ptr + part + 2 * BLOCK_PAIRS, mask=mask, other=0.0)
        gC_1 += tl.load(dturned_ptr + part + 2 * BLOCK_PAIRS + 1, mask=mask, other=0.0)

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


@triton.jit
def _start(segment, chunks, segments):
    """The first chunk of a segment: none has more than one chunk more than another."""
    return (segment * chunks // segments).to(tl.int32)


@triton.jit(do_not_specialize=["A_ptr", "ends_ptr", "segments", "chunks"])
def _segment_state_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, ends_ptr, totals_ptr,
    u_batch, u_token, dt_batch, dt_token, n, chunks, segments, blocks, inverse_scale,
    d: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """End state of every segment but the last, started from zero, and the sum of its step sizes."""
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)

    item = tl.program_id(0)
    first_channel = item % blocks * BLOCK_D
    segment = (item // blocks % (segments - 1)).to(tl.int64)
    batch = (item // blocks // (segments - 1)).to(tl.int64)
    channel = first_channel + lane
    channel_mask = channel < d
    tile, tile_mask = _tile_of(first_channel, d, d, n, BLOCK_N, BLOCK_D)
    bias = _vector(bias_ptr, channel, d)
    rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)

    first_chunk = _start(segment, chunks, segments)
    first = first_chunk.to(tl.int64) * CHUNK
    own = _start(segment + 1, chunks, segments) - first_chunk
    u_rows = u_ptr + batch * u_batch + first * u_token
    dt_rows = dt_ptr + batch * dt_batch + first * dt_token
    B_rows = B_ptr + (batch * chunks * CHUNK + first) * BLOCK_N
    # Every token of these segments is there.
    masks = (channel_mask, channel_mask, channel_mask, channel_mask)
    next_dts = _four_inputs(dt_rows, channel, dt_token, masks)
    next_us = _four_inputs(u_rows, channel, u_token, masks)
    for t in range(0, own * CHUNK, 4):
        dts, us = _wide(next_dts), _wide(next_us)
        next_masks = _four_masks(t + 4, own * CHUNK, channel_mask)
        next_dts = _four_inputs(dt_rows, channel + (t + 4) * dt_token, dt_token, next_masks)
        next_us = _four_inputs(u_rows, channel + (t + 4) * u_token, u_token, next_masks)
        Bs = _four(B_rows, state + t * BLOCK_N, BLOCK_N)
        deltas = _four_steps(dts, bias, inverse_scale, masks)
        for k in tl.static_range(4):
            h = _advance(h, rate, deltas[k], deltas[k] * us[k], Bs[k])
            total += deltas[k]

    boundary = batch * segments + segment
    tl.store(ends_ptr + boundary * d * n + tile, h, mask=tile_mask)
    tl.store(totals_ptr + boundary * d + channel, total, mask=channel_mask)


@triton.jit(do_not_specialize=["segments", "chunks"])
def _carry_kernel(
    A_ptr, totals_ptr, ends_ptr, carries_ptr, d, n, segments, chunks,
    REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What enters each segment, from what each adds and how much it lets through.

    The result has a tile for each of ``chunks``, of which those are written that a segment starts with; with as many
    chunks as segments it may lie where ``ends`` is.
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
            totals = totals + (tl.load(totals_ptr + row * d + at % d, mask=inside, other=0.0),)
        for i in tl.static_range(AHEAD):
            row = batch * chunks + _start(outermost + step * (start + i), chunks, segments)
            inside = mask & (tl.zeros([BLOCK], tl.int32) + (start + i) < segments)
            tl.store(carries_ptr + row * d * n + at, carry, mask=inside)
            carry = tl.exp2(totals[i] * rate) * carry + ends[i]


@triton.jit(do_not_specialize=["A_ptr", "states_ptr", "l", "chunks", "segments"])
def _output_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, scratch_ptr, states_ptr, out_ptr,
    u_batch, u_token, dt_batch, dt_token, z_batch, z_token, out_batch, out_token,
    l, n, chunks, segments, groups, inverse_scale,
    d: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The output of one segment and one norm group, and the state before each chunk but the first."""
    lane = tl.arange(0, BLOCK_D)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK * WIDTH)

    item = tl.program_id(0)
    first_channel = item % groups * GROUP
    limit = first_channel + GROUP
    segment = (item // groups % segments).to(tl.int64)
    batch = (item // groups // segments).to(tl.int64)
    first_chunk = _start(segment, chunks, segments)
    own = _start(segment + 1, chunks, segments) - first_chunk
    for i in range(0, own):
        chunk = (first_chunk + i).to(tl.int64)
        steps = tl.minimum(l - chunk * CHUNK, CHUNK).to(tl.int32)
        u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token
        dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token
        z_rows = z_ptr + batch * z_batch + chunk * CHUNK * z_token
        out_rows = out_ptr + batch * out_batch + chunk * CHUNK * out_token
        B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
        C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
        boundary = (batch * chunks + chunk) * d * n

        for start in range(0, WIDTH, BLOCK_D):
            channel = first_channel + start + lane
            bias = _vector(bias_ptr, channel, limit)
            tile, tile_mask = _tile_of(first_channel + start, limit, d, n, BLOCK_N, BLOCK_D)
            rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
            h = tl.load(states_ptr + boundary + tile, mask=tile_mask, other=0.0)
            h = _scan_chunk(
                h, rate, dt_rows, u_rows, channel, dt_token, u_token, steps, bias, channel < limit,
                inverse_scale, scratch, scratch, start + lane, B_rows, C_rows,
                False, WIDTH, CHUNK, BLOCK_N,
            )  # fmt: skip
            if i + 1 < own:
                tl.store(states_ptr + boundary + d * n + tile, h, mask=tile_mask)

        for start_token in range(0, CHUNK, PIECE):
            token = start_token + tl.arange(0, PIECE)
            y_rows = scratch + token[:, None] * WIDTH
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
                out_piece = (out_rows + channel)[None, :] + token[:, None] * out_token
                tl.store(out_piece, out.to(out_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["A_ptr", "states_ptr", "ends_ptr", "l", "chunks", "segments"])
def _output_backward_kernel(
    grad_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, scratch_ptr,
    dz_ptr, norms_ptr, ends_ptr, totals_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token, dz_batch, dz_token,
    l, n, chunks, segments, groups, inverse_scale,
    d: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of z, and what those of y and of the states before the segments follow from.

    Of each token and norm group the two numbers that give the gradient of y; of each segment what it adds to the
    gradient of the state before it.
    """
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * CHUNK * WIDTH)

    item = tl.program_id(0)
    group = item % groups
    first_channel = group * GROUP
    limit = first_channel + GROUP
    segment = (item // groups % segments).to(tl.int64)
    batch = (item // groups // segments).to(tl.int64)
    first_chunk = _start(segment, chunks, segments)
    own = _start(segment + 1, chunks, segments) - first_chunk
    for i in range(0, own):
        chunk = (first_chunk + i).to(tl.int64)
        first = chunk * CHUNK
        steps = tl.minimum(l - first, CHUNK).to(tl.int32)
        grad_rows = grad_ptr + batch * grad_batch + first * grad_token
        u_rows = u_ptr + batch * u_batch + first * u_token
        dt_rows = dt_ptr + batch * dt_batch + first * dt_token
        z_rows = z_ptr + batch * z_batch + first * z_token
        dz_rows = dz_ptr + batch * dz_batch + first * dz_token
        B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
        C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
        boundary = (batch * chunks + chunk) * d * n

        for start in range(0, WIDTH, BLOCK_D):
            channel = first_channel + start + lane
            bias = _vector(bias_ptr, channel, limit)
            tile, tile_mask = _tile_of(first_channel + start, limit, d, n, BLOCK_N, BLOCK_D)
            rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
            h = tl.load(states_ptr + boundary + tile, mask=tile_mask, other=0.0)
            _scan_chunk(
                h, rate, dt_rows, u_rows, channel, dt_token, u_token, steps, bias, channel < limit,
                inverse_scale, scratch, scratch + CHUNK * WIDTH, start + lane, B_rows, C_rows,
                True, WIDTH, CHUNK, BLOCK_N,
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
            tile, tile_mask = _tile_of(first_channel + start, limit, d, n, BLOCK_N, BLOCK_D)
            rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
            sums = totals_ptr + (batch * segments + segment) * d + channel
            ends = ends_ptr + (batch * segments + segment) * d * n + tile
            # Nothing of the segment before its first chunk.
            more = tl.zeros([1], tl.int32) + i > 0
            total = tl.load(sums, mask=(channel < limit) & more, other=0.0)
            end = tl.load(ends, mask=tile_mask & more[None, :], other=0.0)
            # A token's gradient reaches the start of the segment through all decays up to and with its own: this
            # sum too can be taken forwards.
            for t in range(0, CHUNK, 4):
                deltas = _four(scratch, start + lane + t * WIDTH, WIDTH)
                dys = _four(scratch, start + lane + (CHUNK + t) * WIDTH, WIDTH)
                Cs = _four(C_rows, state + t * BLOCK_N, BLOCK_N)
                for k in tl.static_range(4):
                    total += deltas[k]
                    end += tl.exp2(total[None, :] * rate) * (dys[k][None, :] * Cs[k][:, None])
            tl.store(sums, total, mask=channel < limit)
            tl.store(ends, end, mask=tile_mask)
        tl.debug_barrier()


@triton.jit
def _halves(x):
    """The upper and lower half of the rows of ``[rows, channels]``."""
    ROWS: tl.constexpr = x.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(x, (2, ROWS, x.shape[1])), (1, 2, 0)))


@triton.jit
def _fold(x, y, BIT: tl.constexpr):
    """Sums over pairs of channels that differ in a bit: of x in the one of a pair, of y in the other."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    first = (tl.arange(0, COLUMNS) >> BIT & 1 == 0)[None, :]
    given = tl.where(first, y, x).to(tl.int32, bitcast=True)
    # Both of a pair in all bits, less one's own: the other's, bit by bit.
    pairs = tl.reshape(given, (ROWS, COLUMNS >> BIT + 1, 2, 1 << BIT))
    other = tl.reshape(pairs ^ tl.xor_sum(pairs, 2, keep_dims=True), (ROWS, COLUMNS))
    return tl.where(first, x, y) + other.to(tl.float32, bitcast=True)


@triton.jit
def _sums_over_channels(x, y, FOLDS: tl.constexpr, BITS: tl.constexpr):
    """Sums of two tiles over their channels: where `_place_of_sums` says."""
    x = _fold(x, y, 0)
    for i in tl.static_range(FOLDS):
        upper, lower = _halves(x)
        x = _fold(upper, lower, i + 1)
    for i in tl.static_range(FOLDS + 1, BITS):
        x = _fold(x, x, i)
    return x


@triton.jit
def _place_of_sums(BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, FOLDS: tl.constexpr):
    """Where in ``[2, n]`` a result of `_sums_over_channels` belongs, and whether it is the first of its copies."""
    lane = tl.arange(0, BLOCK_D)
    at = (lane & 1) * BLOCK_N
    for i in tl.static_range(FOLDS):
        at += (lane >> i + 1 & 1) * (BLOCK_N >> i + 1)
    row = tl.arange(0, BLOCK_N >> FOLDS)
    return at[None, :] + row[:, None], (lane < 2 << FOLDS)[None, :] & (row >= 0)[:, None]


# The address of the scratch too: a thread would take four channels if it could load them at once.
@triton.jit(do_not_specialize=["A_ptr", "states_ptr", "scratch_ptr", "carries_ptr", "l", "chunks", "segments"])
def _scan_backward_kernel(
    grad_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, norms_ptr, scratch_ptr,
    carries_ptr, du_ptr, ddt_ptr, dBC_ptr, dD_ptr, dbias_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token,
    l, n, chunks, segments, blocks, parts, groups, inverse_scale,
    d: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr,
    FOLDS: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients before the scan.

    Partial sums by segment of dA (in place of the carries), dD and dbias; by part of the channels of dB and dC.
    """
    TILE: tl.constexpr = BLOCK_N * BLOCK_D
    lane, state = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    # Δ by token, and the state before every fourth.
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (CHUNK * BLOCK_D + CHUNK // 4 * TILE)
    kept = scratch + CHUNK * BLOCK_D
    kept_tile = lane[None, :] + state[:, None] * BLOCK_D
    place, is_first = _place_of_sums(BLOCK_N, BLOCK_D, FOLDS)

    item = tl.program_id(0)
    part = item % parts
    segment = (item // parts % segments).to(tl.int64)
    batch = (item // parts // segments).to(tl.int64)
    first_chunk = _start(segment, chunks, segments)
    own = _start(segment + 1, chunks, segments) - first_chunk
    batches = tl.num_programs(0) // parts // segments
    boundary = batch * segments + segment
    for block in range(part * BLOCKS, tl.minimum((part + 1) * BLOCKS, blocks)):
        first_channel = block * BLOCK_D
        channel = first_channel + lane
        channel_mask = channel < d
        group = channel // GROUP
        tile, tile_mask = _tile_of(first_channel, d, d, n, BLOCK_N, BLOCK_D)
        rate = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
        carry = tl.load(carries_ptr + boundary * d * n + tile, mask=tile_mask, other=0.0)
        dA = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dD, dbias = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
        # Numbers are spread, not what comes of comparing one: to Triton 3.9's interpreter that is no mask.
        adds = is_first & (tl.full(is_first.shape, block, tl.int32) > part * BLOCKS)

        for back in range(0, own):
            chunk = (first_chunk + (own - 1 - back)).to(tl.int64)
            first = chunk * CHUNK
            steps = tl.minimum(l - first, CHUNK).to(tl.int32)
            grad_rows = grad_ptr + batch * grad_batch + first * grad_token
            u_rows = u_ptr + batch * u_batch + first * u_token
            dt_rows = dt_ptr + batch * dt_batch + first * dt_token
            z_rows = z_ptr + batch * z_batch + first * z_token
            du_rows, ddt_rows = du_ptr + (batch * l + first) * d, ddt_ptr + (batch * l + first) * d
            norm_rows = norms_ptr + (batch * l + first) * groups * 2
            B_rows = B_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
            C_rows = C_ptr + (batch * chunks + chunk) * (CHUNK * BLOCK_N)
            dBC_rows = dBC_ptr + ((part * batches + batch) * chunks + chunk) * (CHUNK * 2 * BLOCK_N)

            bias = _vector(bias_ptr, channel, d)
            h = tl.load(states_ptr + (batch * chunks + chunk) * d * n + tile, mask=tile_mask, other=0.0)
            for t in range(0, CHUNK, 4):
                masks = _four_masks(t, steps, channel_mask)
                dts = _wide(_four_inputs(dt_rows, channel + t * dt_token, dt_token, masks))
                us = _wide(_four_inputs(u_rows, channel + t * u_token, u_token, masks))
                Bs = _four(B_rows, state + t * BLOCK_N, BLOCK_N)
                deltas = _four_steps(dts, bias, inverse_scale, masks)
                before = h
                for i in tl.static_range(4):
                    h = _advance(h, rate, deltas[i], deltas[i] * us[i], Bs[i])
                tl.store(kept + (kept_tile + t // 4 * TILE), before)
                for i in tl.static_range(4):
                    tl.store(scratch + (lane + (t + i) * BLOCK_D), deltas[i])
            # What one thread wrote another may read.
            tl.debug_barrier()

            for back_t in range(0, CHUNK, 2):
                t = CHUNK - 2 - back_t
                masks = _two_masks(t, steps, channel_mask)
                us = _two_inputs(u_rows, channel + t * u_token, u_token, masks)
                dts = _two_inputs(dt_rows, channel + t * dt_token, dt_token, masks)
                zs = _two_inputs(z_rows, channel + t * z_token, z_token, masks)
                grads = _two_inputs(grad_rows, channel + t * grad_token, grad_token, masks)
                scales = _two_inputs(norm_rows, group * 2 + t * groups * 2, groups * 2, masks)
                means = _two_inputs(norm_rows, group * 2 + 1 + t * groups * 2, groups * 2, masks)
                deltas = tl.load(scratch + (lane + t * BLOCK_D)), tl.load(scratch + (lane + (t + 1) * BLOCK_D))
                at = place + t * (2 * BLOCK_N)
                sums = (
                    tl.load(dBC_rows + at, mask=adds, other=0.0),
                    tl.load(dBC_rows + (at + 2 * BLOCK_N), mask=adds, other=0.0),
                )
                # Read again: across the loops they would take registers.
                bias, D = _vector(bias_ptr, channel, d), _vector(D_ptr, channel, d)
                before = tl.load(kept + (kept_tile + t // 4 * TILE))
                if t % 4 > 0:
                    # Not as the pair itself: of a chunk that ends in between they are there.
                    skipped_us = _two_inputs(
                        u_rows, channel + (t - 2) * u_token, u_token, _two_masks(t - 2, steps, channel_mask)
                    )
                    for i in tl.static_range(2):
                        delta = tl.load(scratch + (lane + (t - 2 + i) * BLOCK_D))
                        B = tl.load(B_rows + (state + (t - 2 + i) * BLOCK_N))
                        before = _advance(before, rate, delta, delta * skipped_us[i], B)
                B = tl.load(B_rows + (state + t * BLOCK_N))
                states = (before, _advance(before, rate, deltas[0], deltas[0] * us[0], B), h)
                dus, ddts, dBCs = (), (), ()
                for i in tl.static_range(1, -1, -1):
                    B, C = tl.load(B_rows + (state + (t + i) * BLOCK_N)), tl.load(C_rows + (state + (t + i) * BLOCK_N))
                    delta, u = deltas[i], us[i]
                    ungated = grads[i] * zs[i] * sigmoid(zs[i])
                    y = tl.sum(states[i + 1] * C[:, None], 0)
                    dy = scales[i] * (ungated - y * scales[i] * means[i])
                    dh = carry + dy[None, :] * C[:, None]
                    carry = tl.exp2(delta[None, :] * rate) * dh
                    dexponent = carry * states[i]
                    dA += dexponent * delta[None, :]
                    dinput = tl.sum(dh * B[:, None], 0)
                    ddelta = dinput * u + tl.sum(dexponent * rate, 0) * _LN_2
                    ddt = ddelta * sigmoid(dts[i] + bias) * inverse_scale
                    ddt = tl.where(masks[i], ddt, 0.0)
                    dD += ungated * u
                    dbias += ddt
                    dus = dus + (dinput * delta + ungated * D,)
                    ddts = ddts + (ddt,)
                    dBC = _sums_over_channels(dh * (delta * u)[None, :], states[i + 1] * dy[None, :], FOLDS, BITS)
                    dBCs = dBCs + (dBC + sums[i],)
                h = before
                for i in tl.static_range(1, -1, -1):
                    tl.store(du_rows + (channel + (t + i) * d), dus[1 - i].to(du_ptr.dtype.element_ty), mask=masks[i])
                    tl.store(
                        ddt_rows + (channel + (t + i) * d), ddts[1 - i].to(ddt_ptr.dtype.element_ty), mask=masks[i]
                    )
                    tl.store(dBC_rows + (at + i * (2 * BLOCK_N)), dBCs[1 - i], mask=is_first)
            tl.debug_barrier()

        tl.store(carries_ptr + boundary * d * n + tile, dA, mask=tile_mask)
        tl.store(dD_ptr + boundary * d + channel, dD, mask=channel_mask)
        tl.store(dbias_ptr + boundary * d + channel, dbias, mask=channel_mask)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _prepare(u, dt, A, B, C, D, z, freq, dt_bias):
    if A.shape[1] > MAX_STATES:
        raise ValueError(
            f"the triton backend has at most {MAX_STATES} states a channel, for a program keeps all of them in "
            f'registers, got {A.shape[1]}: choose backend="torch"'
        )
    check_triton_dtypes(u=u, dt=dt, B=B, C=C, z=z)
    u, dt, B, C, z = (rows_adjacent(x) for x in (u, dt, B, C, z))
    # By state, so that channels next to each other lie next to each other.
    A, D, freq, dt_bias = (x.float().contiguous() for x in (A.mT, D, freq, dt_bias))
    return u, dt, A, B, C, D, z, freq, dt_bias


def _turns(rope_scale):
    return 1 / (2 * math.pi * rope_scale)


def _turn(B, C, freq, rope_scale):
    b, l, n = B.shape
    padded, block_n = ceil_div(l, CHUNK) * CHUNK, next_power_of_2(n)
    turned_B, turned_C = (torch.empty(b, padded, block_n, dtype=torch.float32, device=B.device) for _ in range(2))
    _turn_kernel[(ceil_div(padded, 32), b)](
        B, C, freq, turned_B, turned_C, *_strides(B, C), l, padded, n,
        TURNS=_turns(rope_scale), BLOCK_T=32, BLOCK_PAIRS=block_n // 2, num_warps=max(4, block_n // 8),
    )  # fmt: skip
    return turned_B, turned_C


def _programs(device, block_n, scratch, registers):
    """Programs to start: those which run at a time, if their ``scratch`` floats stay in the second-level cache."""
    gpu, warps = gpu_of(device), _warps(block_n)
    # A warp has 32 threads, and lives on one of four schedulers, which share the registers.
    resident = 4 * (gpu.registers // 4 // 32 // registers) // warps
    fitting = gpu.l2_bytes * 3 // 4 // (gpu.multiprocessors * scratch * 4)
    # Four warps keep the four schedulers of a multiprocessor at work.
    return gpu.multiprocessors * max(min(resident, fitting), ceil_div(4, warps))


def _registers_of_y(block_n, width):
    # Beyond the published sizes as many as there are: with fewer some would be spilled.
    return REGISTERS if block_n <= 16 and width <= 64 else 255


def _registers(block_n):
    """The most registers of a thread in the last pass of backward: with fewer some spill."""
    return min(2048 // _warps(block_n), 255)


def _backward_channels(device, block_n):
    """Of a tile of the last pass of backward: with 32, as from Hopper on, others take more registers than there are."""
    return BLOCK_D if gpu_of(device).capability >= 90 and block_n <= 16 else BLOCK_D // 2


def _warps(block_n):
    # A thread has 16 states of a channel.
    return max(block_n // 16, 1)


def _backward_scratch(block_n, channels):
    return (CHUNK + CHUNK // 4 * block_n) * channels


def _cut(b, l, d, n, device):
    """Segments: as many as can be worked on at a time, by the pass that takes fewest."""
    block_n, chunks = next_power_of_2(n), ceil_div(l, CHUNK)
    scratch = _backward_scratch(block_n, _backward_channels(device, block_n))
    last = _programs(device, block_n, scratch, _registers(block_n))
    # Those that make y take a norm group at a time: 64 channels, as published.
    others = _programs(device, block_n, 2 * CHUNK * 64, REGISTERS)
    segments = min(last // ceil_div(d, PART), others // ceil_div(d, 64)) // max(b, 1)
    return max(min(segments, chunks), 1)


def _carry(A, totals, ends, carries, reverse):
    (b, segments, d, n), chunks = ends.shape, carries.shape[1]
    _carry_kernel[(ceil_div(d * n, 128), b)](
        A, totals, ends, carries, d, n, segments, chunks, REVERSE=reverse, AHEAD=8, BLOCK=128, num_warps=1
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
    (b, l, d), n = u.shape, A.shape[0]
    chunks, groups = ceil_div(l, CHUNK), d // norm_group_dims
    segments = _cut(b, l, d, n, u.device)
    block_n = next_power_of_2(n)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        B, C = _turn(B, C, freq, rope_scale)
        ends, totals = torch.empty(b, segments, d, n, **fp32), torch.empty(b, segments, d, **fp32)
        common = dict(d=d, CHUNK=CHUNK, BLOCK_N=block_n, BLOCK_D=BLOCK_D, num_warps=_warps(block_n))
        if segments > 1:
            blocks = ceil_div(d, BLOCK_D)
            items = b * (segments - 1) * blocks
            _segment_state_kernel[(items,)](
                u, dt, A, B, dt_bias, ends, totals,
                *_strides(u, dt), n, chunks, segments, blocks, 1 / delta_scale, **common,
            )  # fmt: skip
        states = torch.empty(b, chunks, d, n, **fp32)
        _carry(A, totals, ends, states, reverse=False)
        width = ceil_div(norm_group_dims, BLOCK_D) * BLOCK_D
        items = b * segments * groups
        scratch = torch.empty(items, CHUNK * width, **fp32)
        out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        _output_kernel[(len(scratch),)](
            u, dt, A, B, C, D, z, dt_bias, scratch, states, out,
            *_strides(u, dt, z, out), l, n, chunks, segments, groups, 1 / delta_scale,
            GROUP=norm_group_dims, WIDTH=width, PIECE=PIECE, maxnreg=_registers_of_y(block_n, width), **common,
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
    grad, states = rows_adjacent(grad), states.contiguous()
    u, dt, A, B, C, D, z, freq, dt_bias = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    (b, l, d), n = u.shape, A.shape[0]
    chunks, groups = ceil_div(l, CHUNK), d // norm_group_dims
    segments = _cut(b, l, d, n, u.device)
    block_n = next_power_of_2(n)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        turned_B, turned_C = _turn(B, C, freq, rope_scale)
        dz = torch.empty(b, l, d, dtype=z.dtype, device=z.device) if dz is None else dz
        norms = torch.empty(b, l, groups, 2, **fp32)
        ends, totals = torch.empty(b, segments, d, n, **fp32), torch.empty(b, segments, d, **fp32)
        common = dict(d=d, CHUNK=CHUNK, BLOCK_N=block_n, BLOCK_D=BLOCK_D, num_warps=_warps(block_n))
        width = ceil_div(norm_group_dims, BLOCK_D) * BLOCK_D
        items = b * segments * groups
        scratch = torch.empty(items, 2 * CHUNK * width, **fp32)
        _output_backward_kernel[(len(scratch),)](
            grad, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, scratch, dz, norms, ends, totals,
            *_strides(grad, u, dt, z, dz), l, n, chunks, segments, groups, 1 / delta_scale,
            GROUP=norm_group_dims, WIDTH=width, PIECE=PIECE, maxnreg=_registers_of_y(block_n, width), **common,
        )  # fmt: skip
        # In place: what a segment adds is read before what enters it is written.
        _carry(A, totals, ends, ends, reverse=True)

        channels = _backward_channels(u.device, block_n)
        blocks, parts = ceil_div(d, channels), ceil_div(d, PART)
        items = b * segments * parts
        scratch = torch.empty(items, _backward_scratch(block_n, channels), **fp32)
        du = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        ddt = torch.empty(b, l, d, dtype=dt.dtype, device=dt.device)
        dD_dbias = torch.empty(2, b * segments, d, **fp32)
        b, padded, _ = turned_B.shape
        dturned = torch.empty(parts, b, padded, 2, block_n, **fp32)
        _scan_backward_kernel[(len(scratch),)](
            grad, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, norms, scratch,
            ends, du, ddt, dturned, *dD_dbias,
            *_strides(grad, u, dt, z),
            l, n, chunks, segments, blocks, parts, groups, 1 / delta_scale,
            GROUP=norm_group_dims, BLOCKS=PART // channels, FOLDS=min(block_n, channels // 2).bit_length() - 1,
            BITS=channels.bit_length() - 1, maxnreg=_registers(block_n), **(common | dict(BLOCK_D=channels)),
        )  # fmt: skip

        tiles = ceil_div(l, 16)
        dB = torch.empty(b, l, n, dtype=B.dtype, device=B.device) if dB is None else dB
        dC = torch.empty(b, l, n, dtype=C.dtype, device=C.device) if dC is None else dC
        dfreq = torch.empty(b * tiles, n, **fp32)
        _turn_backward_kernel[(tiles, b)](
            B, C, freq, dturned, dB, dC, dfreq, *_strides(B, C, dB, dC),
            l, padded, n, parts, 1 / rope_scale,
            TURNS=_turns(rope_scale), BLOCK_T=16, BLOCK_PAIRS=block_n // 2, num_warps=_warps(block_n),
        )  # fmt: skip
    # The sum of each segment has taken the place of what entered it.
    dA, (dD, dbias) = ends.sum((0, 1)).view(n, d).mT, (x.sum(0) for x in dD_dbias)
    return du, ddt, dA, dB, dC, dD, dz, dfreq.sum(0), dbias

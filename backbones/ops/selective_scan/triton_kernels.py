"""The De-focus scan as Triton kernels, forward and backward.

The sequence is cut into chunks, so that a few long images fill a GPU. Forward:

1. `_turn_kernel` gives B and C their phase, once for all channels.
2. `_chunk_state_kernel` scans every chunk from zero: its end state, and how much of the past it lets through.
3. `_carry_kernel` joins the chunks: the true state before each, which is all that backward keeps.
4. `_output_kernel` scans every chunk from its true state; norm, skip and gate never leave the registers.

Backward goes forwards through each chunk to rebuild y, the gradient dy of y, and what the chunk passes to the
one before it (`_output_backward_kernel`); joins the chunks from the end (`_carry_kernel`); and goes backwards
through each chunk (`_scan_backward_kernel`), with the states of `PIECE` tokens at a time in a scratch buffer
whose size does not depend on the sequence. Sums over channels, chunks and samples are of partial sums in a
fixed order, never atomic: two runs give the same bits.

A program keeps `[n, channels]` states in registers, in one warp for the published sizes, so that a sum over
states or channels needs no barrier. Tokens are read one step ahead of their use.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.gpu import gpu_of
from backbones.ops.selective_scan.naive import NORM_EPS
from backbones.ops.selective_scan.triton_backend import CHUNK

# Tokens whose states the last pass of backward keeps at once.
PIECE = 16
# Programs of that pass per multiprocessor: their scratch together should stay in the second-level cache.
PROGRAMS_PER_MULTIPROCESSOR = 8

_EPS = tl.constexpr(NORM_EPS)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_TWO_PI = tl.constexpr(2 * math.pi)


@triton.jit
def _step_size(dt, bias, inverse_scale):
    x = dt + bias
    e = tl.exp(-tl.abs(x))
    # log(1 + e) = 2 artanh(e / (2 + e)) as a series; 1 + e itself would round a small e away.
    s = e / (2.0 + e)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return (tl.maximum(x, 0.0) + 2.0 * s * series) * inverse_scale


@triton.jit
def _row(rows, t, stride, mask):
    return tl.load(rows + t * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _token(u_rows, dt_rows, B_rows, t, steps, u_token, dt_token, n, channel_mask, state_mask):
    inside = (t >= 0) & (t < steps)
    u = _row(u_rows, t, u_token, channel_mask & inside)
    dt = _row(dt_rows, t, dt_token, channel_mask & inside)
    B = _row(B_rows, t, n, state_mask & inside)
    return u, dt, B


@triton.jit
def _compose(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, state_1 * decay_2 + state_2


@triton.jit
def _cos_sin(token, turns_per_token):
    # Whole turns are dropped before fp32: an angle of thousands of radians would be right to 3e-4 in it.
    turns = token.to(tl.float64)[:, None] * turns_per_token[None, :]
    angle = (turns - tl.floor(turns + 0.5)).to(tl.float32) * _TWO_PI
    return tl.cos(angle), tl.sin(angle)


@triton.jit(do_not_specialize=["l"])
def _turn_kernel(
    B_ptr, C_ptr, turns_ptr, turned_B_ptr, turned_C_ptr,
    B_batch, B_token, C_batch, C_token, l, n,
    BLOCK_T: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    even = 2 * tl.arange(0, BLOCK_PAIRS)
    cos_0, sin_0 = _cos_sin(token, tl.load(turns_ptr + even, mask=even < n, other=0.0))
    cos_1, sin_1 = _cos_sin(token, tl.load(turns_ptr + even + 1, mask=even < n, other=0.0))
    mask = (token < l)[:, None] & (even < n)[None, :]

    B = B_ptr + batch * B_batch + token[:, None] * B_token + even[None, :]
    C = C_ptr + batch * C_batch + token[:, None] * C_token + even[None, :]
    turned = (batch * l + token)[:, None] * n + even[None, :]
    B_0 = tl.load(B, mask=mask, other=0.0).to(tl.float32)
    B_1 = tl.load(B + 1, mask=mask, other=0.0).to(tl.float32)
    C_0 = tl.load(C, mask=mask, other=0.0).to(tl.float32)
    C_1 = tl.load(C + 1, mask=mask, other=0.0).to(tl.float32)
    tl.store(turned_B_ptr + turned, B_0 * cos_0 - B_1 * sin_0, mask=mask)
    tl.store(turned_B_ptr + turned + 1, B_1 * cos_1 + B_0 * sin_1, mask=mask)
    tl.store(turned_C_ptr + turned, C_0 * cos_0 - C_1 * sin_0, mask=mask)
    tl.store(turned_C_ptr + turned + 1, C_1 * cos_1 + C_0 * sin_1, mask=mask)


@triton.jit(do_not_specialize=["l"])
def _turn_backward_kernel(
    B_ptr, C_ptr, turns_ptr, dturned_B_ptr, dturned_C_ptr, dB_ptr, dC_ptr, dfreq_ptr,
    B_batch, B_token, C_batch, C_token, l, n, blocks,
    BLOCK_T: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """Gradients of B and C, summed over blocks of channels; a partial sum of rope_scale·dfreq by program."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    even = 2 * tl.arange(0, BLOCK_PAIRS)
    mask = (token < l)[:, None] & (even < n)[None, :]
    at = (batch * l + token)[:, None] * n + even[None, :]
    block_stride = tl.num_programs(1).to(tl.int64) * l * n

    gB_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gB_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_0 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    gC_1 = tl.zeros([BLOCK_T, BLOCK_PAIRS], tl.float32)
    for block in range(0, blocks):
        part = at + block * block_stride
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
    cos_0, sin_0 = _cos_sin(token, tl.load(turns_ptr + even, mask=even < n, other=0.0))
    cos_1, sin_1 = _cos_sin(token, tl.load(turns_ptr + even + 1, mask=even < n, other=0.0))

    tl.store(dB_ptr + at, gB_0 * cos_0 + gB_1 * sin_1, mask=mask)
    tl.store(dB_ptr + at + 1, gB_1 * cos_1 - gB_0 * sin_0, mask=mask)
    tl.store(dC_ptr + at, gC_0 * cos_0 + gC_1 * sin_1, mask=mask)
    tl.store(dC_ptr + at + 1, gC_1 * cos_1 - gC_0 * sin_0, mask=mask)

    dangle_0 = -gB_0 * (B_1 * cos_0 + B_0 * sin_0) - gC_0 * (C_1 * cos_0 + C_0 * sin_0)
    dangle_1 = gB_1 * (B_0 * cos_1 - B_1 * sin_1) + gC_1 * (C_0 * cos_1 - C_1 * sin_1)
    dfreq = dfreq_ptr + (batch * tl.num_programs(0) + tl.program_id(0)) * n + even
    position = token.to(tl.float32)[:, None]
    tl.store(dfreq, tl.sum(dangle_0 * position, 0), mask=even < n)
    tl.store(dfreq + 1, tl.sum(dangle_1 * position, 0), mask=even < n)


@triton.jit(do_not_specialize=["l", "chunks"])
def _chunk_state_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, bias_ptr, ends_ptr, passed_ptr,
    u_batch, u_token, dt_batch, dt_token, l, d, n, chunks, blocks, inverse_scale,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """End state of every chunk but the last, started from zero, and the product of its decays."""
    block = tl.program_id(0) % blocks
    chunk = (tl.program_id(0) // blocks).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    channel = block * BLOCK_D + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N)
    channel_mask, state_mask = channel < d, state < n
    tile = channel[None, :] * n + state[:, None]
    tile_mask = channel_mask[None, :] & state_mask[:, None]

    u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token + channel
    dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token + channel
    B_rows = B_ptr + (batch * l + chunk * CHUNK) * n + state
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)
    A = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E

    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_D], tl.float32)
    u, dt, B = _token(u_rows, dt_rows, B_rows, 0, CHUNK, u_token, dt_token, n, channel_mask, state_mask)
    for t in range(0, CHUNK):
        next_u, next_dt, next_B = _token(
            u_rows, dt_rows, B_rows, t + 1, CHUNK, u_token, dt_token, n, channel_mask, state_mask
        )
        delta = _step_size(dt, bias, inverse_scale)
        h = tl.exp2(delta[None, :] * A) * h + (delta * u)[None, :] * B[:, None]
        total += delta
        u, dt, B = next_u, next_dt, next_B

    boundary = (batch * chunks + chunk) * d * n + tile
    tl.store(ends_ptr + boundary, h, mask=tile_mask)
    tl.store(passed_ptr + boundary, tl.exp2(total[None, :] * A), mask=tile_mask)


@triton.jit(do_not_specialize=["chunks"])
def _carry_kernel(
    ends_ptr, passed_ptr, carries_ptr, tile, chunks,
    REVERSE: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What enters each chunk, from what each chunk adds and what it lets through; ``tile`` is d·n."""
    batch = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at_mask = at < tile
    row = tl.arange(0, BLOCK_CHUNKS)
    if REVERSE:
        outermost, step = chunks - 1, -1
    else:
        outermost, step = 0, 1

    carry = tl.zeros([BLOCK], tl.float32)
    first = batch * chunks + outermost
    tl.store(carries_ptr + first * tile + at, carry, mask=at_mask)
    source = (first + step * row)[:, None] * tile + at[None, :]
    mask = (row < chunks - 1)[:, None] & at_mask[None, :]
    ends = tl.load(ends_ptr + source, mask=mask, other=0.0)
    passed = tl.load(passed_ptr + source, mask=mask, other=1.0)
    for start in range(0, chunks - 1, BLOCK_CHUNKS):
        next_source = source + step * BLOCK_CHUNKS * tile
        next_mask = (start + BLOCK_CHUNKS + row < chunks - 1)[:, None] & at_mask[None, :]
        next_ends = tl.load(ends_ptr + next_source, mask=next_mask, other=0.0)
        next_passed = tl.load(passed_ptr + next_source, mask=next_mask, other=1.0)
        passed, h = tl.associative_scan((passed, ends), 0, _compose)
        h += passed * carry[None, :]
        tl.store(carries_ptr + source + step * tile, h, mask=mask)
        carry = tl.sum(tl.where(row[:, None] == BLOCK_CHUNKS - 1, h, 0.0), 0)
        source, mask, ends, passed = next_source, next_mask, next_ends, next_passed


@triton.jit(do_not_specialize=["l", "chunks"])
def _output_kernel(
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, out_ptr,
    u_batch, u_token, dt_batch, dt_token, z_batch, z_token, l, d, n, chunks, groups, inverse_scale,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The output of one chunk and one norm group, from the state before the chunk."""
    group = tl.program_id(0) % groups
    chunk = (tl.program_id(0) // groups).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    channel = group * GROUP + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N)
    channel_mask, state_mask = tl.arange(0, BLOCK_D) < GROUP, state < n
    tile = channel[None, :] * n + state[:, None]
    tile_mask = channel_mask[None, :] & state_mask[:, None]
    steps = tl.minimum(l - chunk * CHUNK, CHUNK).to(tl.int32)

    u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token + channel
    dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token + channel
    z_rows = z_ptr + batch * z_batch + chunk * CHUNK * z_token + channel
    out_rows = out_ptr + (batch * l + chunk * CHUNK) * d + channel
    B_rows = B_ptr + (batch * l + chunk * CHUNK) * n + state
    C_rows = C_ptr + (batch * l + chunk * CHUNK) * n + state
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)
    D = tl.load(D_ptr + channel, mask=channel_mask, other=0.0)
    A = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
    h = tl.load(states_ptr + (batch * chunks + chunk) * d * n + tile, mask=tile_mask, other=0.0)

    u, dt, B = _token(u_rows, dt_rows, B_rows, 0, steps, u_token, dt_token, n, channel_mask, state_mask)
    z = _row(z_rows, 0, z_token, channel_mask)
    C = _row(C_rows, 0, n, state_mask)
    for t in range(0, steps):
        next_u, next_dt, next_B = _token(
            u_rows, dt_rows, B_rows, t + 1, steps, u_token, dt_token, n, channel_mask, state_mask
        )
        next_z = _row(z_rows, t + 1, z_token, channel_mask & (t + 1 < steps))
        next_C = _row(C_rows, t + 1, n, state_mask & (t + 1 < steps))
        delta = _step_size(dt, bias, inverse_scale)
        h = tl.exp2(delta[None, :] * A) * h + (delta * u)[None, :] * B[:, None]
        y = tl.sum(h * C[:, None], 0)
        y *= tl.rsqrt(tl.sum(y * y, 0) / GROUP + _EPS)
        out = (y + D * u) * z * tl.sigmoid(z)
        tl.store(out_rows + t * d, out.to(out_ptr.dtype.element_ty), mask=channel_mask)
        u, dt, B, z, C = next_u, next_dt, next_B, next_z, next_C


@triton.jit(do_not_specialize=["l", "chunks"])
def _output_backward_kernel(
    grad_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr,
    dy_ptr, dz_ptr, dD_ptr, ends_ptr, passed_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token,
    l, d, n, chunks, groups, inverse_scale,
    GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients behind the scan, and the gradient that a chunk's own outputs send to the state before it."""
    group = tl.program_id(0) % groups
    chunk = (tl.program_id(0) // groups).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    channel = group * GROUP + tl.arange(0, BLOCK_D)
    state = tl.arange(0, BLOCK_N)
    channel_mask, state_mask = tl.arange(0, BLOCK_D) < GROUP, state < n
    tile = channel[None, :] * n + state[:, None]
    tile_mask = channel_mask[None, :] & state_mask[:, None]
    steps = tl.minimum(l - chunk * CHUNK, CHUNK).to(tl.int32)

    grad_rows = grad_ptr + batch * grad_batch + chunk * CHUNK * grad_token + channel
    u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token + channel
    dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token + channel
    z_rows = z_ptr + batch * z_batch + chunk * CHUNK * z_token + channel
    dy_rows = dy_ptr + (batch * l + chunk * CHUNK) * d + channel
    dz_rows = dz_ptr + (batch * l + chunk * CHUNK) * d + channel
    B_rows = B_ptr + (batch * l + chunk * CHUNK) * n + state
    C_rows = C_ptr + (batch * l + chunk * CHUNK) * n + state
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)
    D = tl.load(D_ptr + channel, mask=channel_mask, other=0.0)
    A = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
    boundary = (batch * chunks + chunk) * d * n + tile
    h = tl.load(states_ptr + boundary, mask=tile_mask, other=0.0)

    passed = tl.full([BLOCK_N, BLOCK_D], 1.0, tl.float32)
    end = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dD = tl.zeros([BLOCK_D], tl.float32)
    u, dt, B = _token(u_rows, dt_rows, B_rows, 0, steps, u_token, dt_token, n, channel_mask, state_mask)
    z = _row(z_rows, 0, z_token, channel_mask)
    grad = _row(grad_rows, 0, grad_token, channel_mask)
    C = _row(C_rows, 0, n, state_mask)
    for t in range(0, steps):
        next_u, next_dt, next_B = _token(
            u_rows, dt_rows, B_rows, t + 1, steps, u_token, dt_token, n, channel_mask, state_mask
        )
        next_z = _row(z_rows, t + 1, z_token, channel_mask & (t + 1 < steps))
        next_grad = _row(grad_rows, t + 1, grad_token, channel_mask & (t + 1 < steps))
        next_C = _row(C_rows, t + 1, n, state_mask & (t + 1 < steps))
        delta = _step_size(dt, bias, inverse_scale)
        decay = tl.exp2(delta[None, :] * A)
        h = decay * h + (delta * u)[None, :] * B[:, None]
        y = tl.sum(h * C[:, None], 0)
        scale = tl.rsqrt(tl.sum(y * y, 0) / GROUP + _EPS)
        y *= scale

        sigmoid = tl.sigmoid(z)
        dz = grad * (y + D * u) * sigmoid * (1.0 + z * (1.0 - sigmoid))
        tl.store(dz_rows + t * d, dz.to(dz_ptr.dtype.element_ty), mask=channel_mask)
        ungated = grad * z * sigmoid
        dD += ungated * u
        dy = scale * (ungated - y * (tl.sum(ungated * y, 0) / GROUP))
        tl.store(dy_rows + t * d, dy, mask=channel_mask)

        # A token's gradient reaches the start of the chunk through all decays up to and with its own: this
        # sum too can be taken forwards.
        passed *= decay
        end += passed * (dy[None, :] * C[:, None])
        u, dt, B, z, grad, C = next_u, next_dt, next_B, next_z, next_grad, next_C

    tl.store(ends_ptr + boundary, end, mask=tile_mask)
    tl.store(passed_ptr + boundary, passed, mask=tile_mask)
    tl.store(dD_ptr + (batch * chunks + chunk) * d + channel, dD, mask=channel_mask)


@triton.jit(do_not_specialize=["l", "chunks", "items"])
def _scan_backward_kernel(
    grad_ptr, dy_ptr, u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, states_ptr, carries_ptr,
    scratch_ptr, du_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dbias_ptr,
    grad_batch, grad_token, u_batch, u_token, dt_batch, dt_token, z_batch, z_token,
    l, d, n, chunks, blocks, items, inverse_scale,
    CHUNK: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients before the scan: partial sums by chunk of dA and dbias, by block of channels of dB and dC."""
    state = tl.arange(0, BLOCK_N)
    state_mask = state < n
    lane = tl.arange(0, BLOCK_D)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (PIECE * BLOCK_N * BLOCK_D)
    # As A and the states lie in memory: with another order, registers would be rearranged at each token.
    scratch += lane[None, :] * BLOCK_N + state[:, None]

    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block = item % blocks
        chunk = (item // blocks % chunks).to(tl.int64)
        batch = (item // blocks // chunks).to(tl.int64)
        channel = block * BLOCK_D + lane
        channel_mask = channel < d
        tile = channel[None, :] * n + state[:, None]
        tile_mask = channel_mask[None, :] & state_mask[:, None]
        steps = tl.minimum(l - chunk * CHUNK, CHUNK).to(tl.int32)

        grad_rows = grad_ptr + batch * grad_batch + chunk * CHUNK * grad_token + channel
        u_rows = u_ptr + batch * u_batch + chunk * CHUNK * u_token + channel
        dt_rows = dt_ptr + batch * dt_batch + chunk * CHUNK * dt_token + channel
        z_rows = z_ptr + batch * z_batch + chunk * CHUNK * z_token + channel
        first = batch * l + chunk * CHUNK
        B_rows = B_ptr + first * n + state
        C_rows = C_ptr + first * n + state
        dy_rows = dy_ptr + first * d + channel
        du_rows = du_ptr + first * d + channel
        ddt_rows = ddt_ptr + first * d + channel
        batches = items // blocks // chunks
        dB_rows = dB_ptr + (block.to(tl.int64) * batches * l + first) * n + state
        dC_rows = dC_ptr + (block.to(tl.int64) * batches * l + first) * n + state
        boundary = (batch * chunks + chunk) * d * n + tile

        bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)
        D = tl.load(D_ptr + channel, mask=channel_mask, other=0.0)
        A = tl.load(A_ptr + tile, mask=tile_mask, other=0.0) * _LOG2_E
        carry = tl.load(carries_ptr + boundary, mask=tile_mask, other=0.0)
        dA = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dbias = tl.zeros([BLOCK_D], tl.float32)

        pieces = tl.cdiv(steps, PIECE)
        for piece in range(0, pieces):
            low = (pieces - 1 - piece) * PIECE
            high = tl.minimum(low + PIECE, steps)
            h = tl.load(states_ptr + boundary, mask=tile_mask, other=0.0)
            u, dt, B = _token(u_rows, dt_rows, B_rows, 0, high, u_token, dt_token, n, channel_mask, state_mask)
            for t in range(0, high):
                next_u, next_dt, next_B = _token(
                    u_rows, dt_rows, B_rows, t + 1, high, u_token, dt_token, n, channel_mask, state_mask
                )
                if t >= low:
                    tl.store(scratch + (t - low) * (BLOCK_N * BLOCK_D), h)
                delta = _step_size(dt, bias, inverse_scale)
                h = tl.exp2(delta[None, :] * A) * h + (delta * u)[None, :] * B[:, None]
                u, dt, B = next_u, next_dt, next_B
            # What one thread wrote another may read.
            tl.debug_barrier()

            u, dt, B = _token(u_rows, dt_rows, B_rows, high - 1, high, u_token, dt_token, n, channel_mask, state_mask)
            C = _row(C_rows, high - 1, n, state_mask)
            z = _row(z_rows, high - 1, z_token, channel_mask)
            grad = _row(grad_rows, high - 1, grad_token, channel_mask)
            dy = _row(dy_rows, high - 1, d, channel_mask)
            h = tl.load(scratch + (high - 1 - low) * (BLOCK_N * BLOCK_D))
            for back in range(0, high - low):
                t = high - 1 - back
                more = t > low
                next_u, next_dt, next_B = _token(
                    u_rows, dt_rows, B_rows, t - 1, high, u_token, dt_token, n, channel_mask, state_mask
                )
                next_C = _row(C_rows, t - 1, n, state_mask & more)
                next_z = _row(z_rows, t - 1, z_token, channel_mask & more)
                next_grad = _row(grad_rows, t - 1, grad_token, channel_mask & more)
                next_dy = _row(dy_rows, t - 1, d, channel_mask & more)
                next_h = tl.load(scratch + tl.maximum(t - 1 - low, 0) * (BLOCK_N * BLOCK_D))

                delta = _step_size(dt, bias, inverse_scale)
                decay = tl.exp2(delta[None, :] * A)
                dh = carry + dy[None, :] * C[:, None]
                carry = decay * dh
                after = decay * h + (delta * u)[None, :] * B[:, None]
                tl.store(dC_rows + t * n, tl.sum(after * dy[None, :], 1), mask=state_mask)
                tl.store(dB_rows + t * n, tl.sum(dh * (delta * u)[None, :], 1), mask=state_mask)
                dinput = tl.sum(dh * B[:, None], 0)
                dexponent = carry * h
                dA += dexponent * delta[None, :]
                ddelta = dinput * u + tl.sum(dexponent * A, 0) * _LN_2
                du = dinput * delta + grad * z * tl.sigmoid(z) * D
                ddt = ddelta * tl.sigmoid(dt + bias) * inverse_scale
                dbias += ddt
                tl.store(du_rows + t * d, du.to(du_ptr.dtype.element_ty), mask=channel_mask)
                tl.store(ddt_rows + t * d, ddt.to(ddt_ptr.dtype.element_ty), mask=channel_mask)
                u, dt, B, C = next_u, next_dt, next_B, next_C
                z, grad, dy, h = next_z, next_grad, next_dy, next_h
            tl.debug_barrier()

        tl.store(dA_ptr + boundary, dA, mask=tile_mask)
        tl.store(dbias_ptr + (batch * chunks + chunk) * d + channel, dbias, mask=channel_mask)


def _rows_adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _prepare(u, dt, A, B, C, D, z, freq, dt_bias):
    for name, x in dict(u=u, dt=dt, B=B, C=C, z=z).items():
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"the triton backend works in fp32 on fp32, bf16 or fp16, got {name} in {x.dtype}: "
                'cast it, or choose backend="torch"'
            )
    u, dt, B, C, z = (_rows_adjacent(x) for x in (u, dt, B, C, z))
    A, D, freq, dt_bias = (x.float().contiguous() for x in (A, D, freq, dt_bias))
    return u, dt, A, B, C, D, z, freq, dt_bias


def _turns_per_token(freq, rope_scale):
    return freq.double() / (2 * math.pi * rope_scale)


def _turn(B, C, turns):
    b, l, n = B.shape
    turned_B, turned_C = (torch.empty(b, l, n, dtype=torch.float32, device=B.device) for _ in range(2))
    _turn_kernel[(triton.cdiv(l, 32), b)](
        B, C, turns, turned_B, turned_C, *_strides(B, C), l, n,
        BLOCK_T=32, BLOCK_PAIRS=triton.next_power_of_2(n // 2), num_warps=2,
    )  # fmt: skip
    return turned_B, turned_C


def _carries(ends, passed, reverse):
    b, chunks, d, n = ends.shape
    carries = torch.empty_like(ends)
    # A warp as wide as the block: a thread holds all chunks of its states, and scans them by itself.
    _carry_kernel[(triton.cdiv(d * n, 128), b)](
        ends, passed, carries, d * n, chunks, REVERSE=reverse, BLOCK_CHUNKS=8, BLOCK=128, num_warps=1
    )
    return carries


def _warps(block_n, block_d, states_per_thread):
    return min(max(block_n * block_d // (32 * states_per_thread), 1), 16)


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
    block_n, group_d = triton.next_power_of_2(n), triton.next_power_of_2(norm_group_dims)
    block_d = _scan_block(d)
    blocks = triton.cdiv(d, block_d)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        B, C = _turn(B, C, _turns_per_token(freq, rope_scale))
        ends, passed = (torch.empty(b, chunks, d, n, **fp32) for _ in range(2))
        if chunks > 1:
            _chunk_state_kernel[(blocks * (chunks - 1), b)](
                u, dt, A, B, dt_bias, ends, passed,
                *_strides(u, dt), l, d, n, chunks, blocks, 1 / delta_scale,
                CHUNK=CHUNK, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=_warps(block_n, block_d, 16),
            )  # fmt: skip
        states = _carries(ends, passed, reverse=False)
        out = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        _output_kernel[(groups * chunks, b)](
            u, dt, A, B, C, D, z, dt_bias, states, out,
            *_strides(u, dt, z), l, d, n, chunks, groups, 1 / delta_scale,
            GROUP=norm_group_dims, CHUNK=CHUNK, BLOCK_N=block_n, BLOCK_D=group_d,
            num_warps=_warps(block_n, group_d, 32),
        )  # fmt: skip
    return out, states


def _scan_block(d):
    return min(32, triton.next_power_of_2(d))


def _programs(device, items):
    if device.type != "cuda":
        # In the interpreter: few enough to have several items each.
        return min(items, 3)
    return min(items, gpu_of(device).multiprocessors * PROGRAMS_PER_MULTIPROCESSOR)


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
) -> tuple[Tensor, ...]:
    """See `register_scan`."""
    grad, states = _rows_adjacent(grad), states.contiguous()
    u, dt, A, B, C, D, z, freq, dt_bias = _prepare(u, dt, A, B, C, D, z, freq, dt_bias)
    (b, l, d), n = u.shape, A.shape[1]
    chunks, groups = triton.cdiv(l, CHUNK), d // norm_group_dims
    block_n, group_d = triton.next_power_of_2(n), triton.next_power_of_2(norm_group_dims)
    block_d = _scan_block(d)
    blocks = triton.cdiv(d, block_d)
    fp32 = dict(dtype=torch.float32, device=u.device)

    with torch.cuda.device_of(u):
        turns = _turns_per_token(freq, rope_scale)
        turned_B, turned_C = _turn(B, C, turns)
        dy = torch.empty(b, l, d, **fp32)
        dz = torch.empty(b, l, d, dtype=z.dtype, device=z.device)
        ends, passed = (torch.empty(b, chunks, d, n, **fp32) for _ in range(2))
        dD, dbias = (torch.empty(b, chunks, d, **fp32) for _ in range(2))
        _output_backward_kernel[(groups * chunks, b)](
            grad, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, dy, dz, dD, ends, passed,
            *_strides(grad, u, dt, z), l, d, n, chunks, groups, 1 / delta_scale,
            GROUP=norm_group_dims, CHUNK=CHUNK, BLOCK_N=block_n, BLOCK_D=group_d,
            num_warps=_warps(block_n, group_d, 32),
        )  # fmt: skip
        carries = _carries(ends, passed, reverse=True)

        items = b * chunks * blocks
        programs = _programs(u.device, items)
        scratch = torch.empty(programs, PIECE, block_n, block_d, **fp32)
        du = torch.empty(b, l, d, dtype=u.dtype, device=u.device)
        ddt = torch.empty(b, l, d, dtype=dt.dtype, device=dt.device)
        # No longer needed, and of the shape of dA's partial sums.
        dA = ends
        dturned_B, dturned_C = (torch.empty(blocks, b, l, n, **fp32) for _ in range(2))
        _scan_backward_kernel[(programs,)](
            grad, dy, u, dt, A, turned_B, turned_C, D, z, dt_bias, states, carries, scratch,
            du, ddt, dA, dturned_B, dturned_C, dbias,
            *_strides(grad, u, dt, z), l, d, n, chunks, blocks, items, 1 / delta_scale,
            CHUNK=CHUNK, PIECE=PIECE, BLOCK_N=block_n, BLOCK_D=block_d,
            num_warps=_warps(block_n, block_d, 16),
        )  # fmt: skip

        tiles = triton.cdiv(l, 16)
        dB, dC = torch.empty(b, l, n, **fp32), torch.empty(b, l, n, **fp32)
        dfreq = torch.empty(b, tiles, n, **fp32)
        _turn_backward_kernel[(tiles, b)](
            B, C, turns, dturned_B, dturned_C, dB, dC, dfreq, *_strides(B, C), l, n, blocks,
            BLOCK_T=16, BLOCK_PAIRS=triton.next_power_of_2(n // 2), num_warps=1,
        )  # fmt: skip
    dA, dD, dfreq, dbias = (x.sum((0, 1)) for x in (dA, dD, dfreq, dbias))
    return du, ddt, dA, dB, dC, dD, dz, dfreq / rope_scale, dbias

"""Retention as Triton kernels, forward and backward, linear in the number of tokens.

The sequence is cut into chunks. `_states_kernel` goes through them in order, with the state of a head in registers,
and writes what each chunk finds of all before it; then `_output_kernel` works on all chunks at once, with the products
of a chunk's own tokens in registers. Backward rebuilds the states; goes through the chunks from the end for the
gradients of the states, with the same kernel; and works on all chunks at once for the gradient of the values, which
mirrors the output, and for those of queries and keys (`_gradient_kernel`). Nothing but the inputs is kept in between.
Queries and keys are turned by their phase before (`rotary_triton_kernels`).

Every decay counts from a border of a chunk and is at most 1. So do the distances in the gradient of λ: from a key to
the end of its chunk, over whole chunks, from the start of a chunk to a query; no large terms cancel. No sum is atomic,
each is in a fixed order: two runs give the same bits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.gpu import ceil_div, dot_precision
from backbones.ops.layout import rows_adjacent
from backbones.ops.rotary_triton_kernels import padded, turn, turn_back, working_dtype

# Tokens of a chunk, by the dtype that is multiplied in: as many as no architecture from sm_80 on spills for.
CHUNK = {torch.bfloat16: 64, torch.float32: 32}
# Values of a head that a program of `_states_kernel` keeps the state of, and that others work on at once.
BLOCK_V = 32

LOG2_E = math.log2(math.e)


@triton.jit(do_not_specialize=["l", "chunks"])
def _states_kernel(
    x_ptr, v_ptr, decay_ptr, states_ptr, before_ptr, ddecay_ptr,
    v_batch, v_token, v_head, l, chunks, v_dims, rate_scale,
    REVERSE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Before each chunk, the sum of x_s v_sᵀ over all tokens before, decayed up to its start.

    In REVERSE: after each chunk, that over all tokens after, decayed down to its end: where x are queries and v
    gradients, the gradient of the state there. And a partial sum of what the decay over whole chunks adds to
    delta_scale · dλ, from the states that forward found, in ``before_ptr``.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    step, channel = tl.arange(0, CHUNK), tl.arange(0, K_DIMS)
    v_channel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    v_inside = (v_channel < v_dims)[None, :]
    rate = tl.load(decay_ptr + head) * rate_scale
    across = tl.exp2(rate * CHUNK)
    if REVERSE:
        within = tl.exp2(rate * (step + 1))
    else:
        within = tl.exp2(rate * (CHUNK - 1 - step))

    row = batch * heads + head
    x_rows = x_ptr + row * l * K_DIMS + channel[None, :]
    v_rows = v_ptr + batch * v_batch + head * v_head + v_channel[None, :]
    tile = channel[:, None] * V_DIMS + v_channel[None, :]
    state = tl.zeros([K_DIMS, BLOCK_V], tl.float32)
    ddecay = tl.zeros([BLOCK_V], tl.float32)
    for i in range(0, chunks):
        if REVERSE:
            chunk = tl.cast(chunks - 1 - i, tl.int64)
        else:
            chunk = tl.cast(i, tl.int64)
        token = chunk * CHUNK + step
        inside = (token < l)[:, None]
        at = (row * chunks + chunk) * (K_DIMS * V_DIMS) + tile
        tl.store(states_ptr + at, state.to(states_ptr.dtype.element_ty))
        if REVERSE:
            before = tl.load(before_ptr + at).to(tl.float32)
            ddecay += tl.sum(before * state, 0)
        x = tl.load(x_rows + token[:, None] * K_DIMS, mask=inside, other=0.0)
        v = tl.load(v_rows + token[:, None] * v_token, mask=inside & v_inside, other=0.0)
        x = (x.to(tl.float32) * within[:, None]).to(v.dtype)
        state = tl.dot(tl.trans(x), v, state * across, input_precision=PRECISION)
    if REVERSE:
        part = (batch * tl.num_programs(0) + tl.program_id(0)) * heads + head
        tl.store(ddecay_ptr + part, tl.sum(ddecay, 0) * across * CHUNK)


@triton.jit(do_not_specialize=["l", "chunks"])
def _output_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, states_ptr, out_ptr,
    v_batch, v_token, v_head, l, chunks, v_dims, rate_scale,
    REVERSE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_V: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What tokens have of the states before their chunk and of their own chunk's tokens up to them.

    In REVERSE, of the states after and of the tokens from them on: the gradient of values, where q are keys, k queries,
    v gradients and states those of `_states_kernel` in REVERSE.
    """
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    chunk = tl.program_id(0).to(tl.int64)
    step, channel = tl.arange(0, CHUNK), tl.arange(0, K_DIMS)
    token = chunk * CHUNK + step
    inside = (token < l)[:, None]
    row = batch * heads + head
    at = (row * l + token)[:, None] * K_DIMS + channel[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)
    k = tl.load(k_ptr + at, mask=inside, other=0.0)
    rate = tl.load(decay_ptr + head) * rate_scale
    if REVERSE:
        distance = step[None, :] - step[:, None]
        to_border = tl.exp2(rate * (CHUNK - 1 - step))
    else:
        distance = step[:, None] - step[None, :]
        to_border = tl.exp2(rate * (step + 1))
    decay = tl.where(distance >= 0, tl.exp2(rate * tl.maximum(distance, 0)), 0.0)
    scores = (tl.dot(q, tl.trans(k), input_precision=PRECISION) * decay).to(q.dtype)

    v_rows = v_ptr + batch * v_batch + head * v_head + token[:, None] * v_token
    out_rows = out_ptr + ((batch * l + token) * heads + head)[:, None] * v_dims
    states = states_ptr + (row * chunks + chunk) * (K_DIMS * V_DIMS) + channel[:, None] * V_DIMS
    for first in range(0, V_DIMS, BLOCK_V):
        v_channel = first + tl.arange(0, BLOCK_V)[None, :]
        mask = inside & (v_channel < v_dims)
        out = tl.dot(q, tl.load(states + v_channel), input_precision=PRECISION) * to_border[:, None]
        v = tl.load(v_rows + v_channel, mask=mask, other=0.0)
        out = tl.dot(scores, v, out, input_precision=PRECISION)
        tl.store(out_rows + v_channel, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["l", "chunks"])
def _gradient_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, decay_ptr, states_ptr, dstates_ptr, dq_ptr, dk_ptr, ddecay_ptr,
    grad_batch, grad_token, grad_head, v_batch, v_token, v_head, l, chunks, v_dims, rate_scale,
    CHUNK: tl.constexpr, BLOCK_V: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the turned q and k; the rest of delta_scale · dλ, token by token."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    chunk = tl.program_id(0).to(tl.int64)
    step, channel = tl.arange(0, CHUNK), tl.arange(0, K_DIMS)
    token = chunk * CHUNK + step
    inside = (token < l)[:, None]
    row = batch * heads + head
    at = (row * l + token)[:, None] * K_DIMS + channel[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)
    k = tl.load(k_ptr + at, mask=inside, other=0.0)
    rate = tl.load(decay_ptr + head) * rate_scale

    grad_rows = grad_ptr + batch * grad_batch + head * grad_head + token[:, None] * grad_token
    v_rows = v_ptr + batch * v_batch + head * v_head + token[:, None] * v_token
    state_rows = (row * chunks + chunk) * (K_DIMS * V_DIMS) + channel[:, None] * V_DIMS
    dscores = tl.zeros([CHUNK, CHUNK], tl.float32)
    dq = tl.zeros([CHUNK, K_DIMS], tl.float32)
    dk = tl.zeros([CHUNK, K_DIMS], tl.float32)
    for first in range(0, V_DIMS, BLOCK_V):
        v_channel = first + tl.arange(0, BLOCK_V)[None, :]
        mask = inside & (v_channel < v_dims)
        grad = tl.load(grad_rows + v_channel, mask=mask, other=0.0)
        v = tl.load(v_rows + v_channel, mask=mask, other=0.0)
        state = tl.load(states_ptr + state_rows + v_channel)
        dstate = tl.load(dstates_ptr + state_rows + v_channel)
        dscores = tl.dot(grad, tl.trans(v), dscores, input_precision=PRECISION)
        dq = tl.dot(grad, tl.trans(state), dq, input_precision=PRECISION)
        dk = tl.dot(v, tl.trans(dstate), dk, input_precision=PRECISION)

    # Of other chunks first, each from its border; then of the chunk's own tokens.
    dq *= tl.exp2(rate * (step + 1))[:, None]
    dk *= tl.exp2(rate * (CHUNK - 1 - step))[:, None]
    reach = tl.sum(q.to(tl.float32) * dq, 1) * (step + 1) + tl.sum(k.to(tl.float32) * dk, 1) * (CHUNK - 1 - step)
    distance = step[:, None] - step[None, :]
    dscores *= tl.where(distance >= 0, tl.exp2(rate * tl.maximum(distance, 0)), 0.0)
    reach += tl.sum(dscores * tl.dot(q, tl.trans(k), input_precision=PRECISION) * distance, 1)
    tl.store(ddecay_ptr + row * l + token, reach, mask=token < l)
    dscores = dscores.to(q.dtype)
    dq = tl.dot(dscores, k, dq, input_precision=PRECISION)
    dk = tl.dot(tl.trans(dscores), q, dk, input_precision=PRECISION)
    tl.store(dq_ptr + at, dq, mask=inside)
    tl.store(dk_ptr + at, dk, mask=inside)


def _prepare(q, k, v, decay, freq, rope_scale):
    dtype = working_dtype(q, k, v)
    if dtype == torch.float16:
        # The sums over a chunk, and the state that they add up to, may be larger than fp16 goes.
        dtype = torch.float32
    turned_q, turned_k = turn(q, k, freq, rope_scale, dtype)
    return turned_q, turned_k, rows_adjacent(v.to(dtype)), decay.float().contiguous()


def _sizes(x, v_dims):
    widths = dict(BLOCK_V=min(BLOCK_V, padded(v_dims)), K_DIMS=x.shape[-1], V_DIMS=padded(v_dims))
    return dict(CHUNK=CHUNK[x.dtype], **widths, PRECISION=dot_precision(x.device))


def _states(x, v, decay, rate_scale, before=None):
    """The states before each chunk, or their gradients after it and the partial sums of λ's, `(b, tiles, h)`."""
    (b, h, l, k_dims), v_dims = x.shape, v.shape[-1]
    sizes = _sizes(x, v_dims)
    chunks, tiles = ceil_div(l, sizes["CHUNK"]), padded(v_dims) // sizes["BLOCK_V"]
    states = torch.empty(b, h, chunks, k_dims, padded(v_dims), dtype=x.dtype, device=x.device)
    ddecay = torch.empty(b, tiles, h, dtype=torch.float32, device=x.device)
    _states_kernel[(tiles, h, b)](
        x, v, decay, states, states if before is None else before, ddecay,
        *v.stride()[:3], l, chunks, v_dims, rate_scale,
        REVERSE=before is not None, **sizes, num_warps=4,
    )  # fmt: skip
    return states, ddecay


def _add_up(q, k, v, decay, states, rate_scale, out, reverse):
    b, h, chunks = states.shape[:3]
    l, v_dims = v.shape[1], v.shape[-1]
    _output_kernel[(chunks, h, b)](
        q, k, v, decay, states, out, *v.stride()[:3], l, chunks, v_dims, rate_scale,
        REVERSE=reverse, **_sizes(q, v_dims), num_warps=8,
    )  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """See `retention`.

    Raises:
        ValueError: q, k or v in another dtype than fp32, bf16 and fp16.
    """
    b, l, h, v_dims = v.shape
    rate_scale = LOG2_E / delta_scale
    with torch.cuda.device_of(q):
        out = torch.empty(b, l, h, v_dims, dtype=q.dtype, device=q.device)
        q, k, v, decay = _prepare(q, k, v, decay, freq, rope_scale)
        states, _ = _states(k, v, decay, rate_scale)
        _add_up(q, k, v, decay, states, rate_scale, out, reverse=False)
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their dtypes, of λ and θ in float64."""
    (b, l, h, _), v_dims, rate_scale = q.shape, v.shape[-1], LOG2_E / delta_scale
    fp32 = dict(dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        q, k, v, decay = _prepare(q, k, v, decay, freq, rope_scale)
        grad = rows_adjacent(grad.to(v.dtype))
        states, _ = _states(k, v, decay, rate_scale)
        dstates, ddecay_across = _states(q, grad, decay, rate_scale, states)
        _add_up(k, q, grad, decay, dstates, rate_scale, dv, reverse=True)
        chunks = states.shape[2]
        dturned_q, dturned_k = (torch.empty(q.shape, **fp32) for _ in range(2))
        ddecay = torch.empty(b, h, l, **fp32)
        _gradient_kernel[(chunks, h, b)](
            grad, q, k, v, decay, states, dstates, dturned_q, dturned_k, ddecay,
            *grad.stride()[:3], *v.stride()[:3], l, chunks, v_dims, rate_scale,
            **_sizes(q, v_dims), num_warps=8, num_stages=2,
        )  # fmt: skip
        dfreq = turn_back(q, k, dturned_q, dturned_k, freq, rope_scale, dq, dk)
    ddecay = ddecay.sum((0, 2), dtype=torch.float64) + ddecay_across.sum((0, 1), dtype=torch.float64)
    return dq, dk, dv, ddecay / delta_scale, dfreq

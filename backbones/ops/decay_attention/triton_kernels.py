"""De-focus attention as Triton kernels, forward and backward.

Scores exist a tile at a time, in registers; forward keeps its output and, for each query, the logarithm of the sum of
the exponentials. Queries and keys are turned by their phase before (`rotary_triton_kernels`). Forward is one pass, a
program for each block of queries; backward is two:

1. `_query_gradient_kernel`: a program for each block of queries goes through the keys; a partial sum of the gradient
   of λ leaves it, too.
2. `_key_gradient_kernel`: a program for each block of keys goes through the queries.

No sum is atomic, each is in a fixed order: two runs give the same bits.

The decay multiplies the logit, so that far keys keep their share and no block may be left out. But where all of a
block's keys lie on one side of its queries, a position between them makes the decay a product of one factor for each
query and one for each key, neither above 1: n + m exponentials for n·m scores.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.gpu import ceil_div, dot_precision
from backbones.ops.layout import rows_adjacent
from backbones.ops.rotary_triton_kernels import padded, turn, turn_back, working_dtype

# Queries and keys of a block, warps, stages of the pipeline of loads, by the dtype that is multiplied in. In 16 bits as
# many as no architecture from sm_80 on spills for at the published width of a head; in fp32, whose parts in TF32 take
# the registers twice, what an H200 was fastest with.
# Where a program has queries, their number is a multiple of that of the keys.
FORWARD = {torch.bfloat16: (128, 64, 8, 3), torch.float16: (128, 64, 8, 3), torch.float32: (128, 32, 8, 2)}
QUERY_GRADIENT = {torch.bfloat16: (128, 32, 8, 3), torch.float16: (128, 32, 8, 3), torch.float32: (64, 32, 4, 2)}
KEY_GRADIENT = {torch.bfloat16: (16, 64, 4, 3), torch.float16: (16, 64, 4, 3), torch.float32: (32, 16, 4, 2)}
PUBLISHED_WIDTH = 64

LOG2_E = math.log2(math.e)

_LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _decay(one, other, between, rate, scale, FAR: tl.constexpr):
    """scale · 2^(rate · distance) of each pair of positions; where FAR, ``between`` lies between all of them."""
    if FAR:
        near = tl.exp2(rate * tl.abs(one - between)) * scale
        return near[:, None] * tl.exp2(rate * tl.abs(other - between))[None, :]
    else:
        return tl.exp2(rate * tl.abs(one[:, None] - other[None, :])) * scale


@triton.jit
def _attend(
    out, total, top, q, query, k_ptr, v_ptr, v_token, v_dims, l, low, high, between, rate, scale,
    FAR: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_K: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Takes the keys from ``low`` to ``high`` into the running softmax of a block of queries."""
    step, v_channel = tl.arange(0, BLOCK_K), tl.arange(0, V_DIMS)
    k_at = step[:, None] * K_DIMS + tl.arange(0, K_DIMS)[None, :]
    v_at = step[:, None] * v_token + v_channel[None, :]
    for first in range(low, high, BLOCK_K):
        key = first + step
        v_mask = (v_channel < v_dims)[None, :]
        k_tile = k_ptr + tl.cast(first, tl.int64) * K_DIMS + k_at
        v_tile = v_ptr + tl.cast(first, tl.int64) * v_token + v_at
        if MASKED:
            v_mask &= (key < l)[:, None]
            k = tl.load(k_tile, mask=(key < l)[:, None], other=0.0)
        else:
            k = tl.load(k_tile)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores *= _decay(query.to(tl.float32), key.to(tl.float32), between, rate, scale, FAR)
        if MASKED:
            visible = (key < l)[None, :]
            if CAUSAL:
                visible &= key[None, :] <= query[:, None]
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_tile, mask=v_mask, other=0.0)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = new_top
    return out, total, top


@triton.jit(do_not_specialize=["l"])
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, decay_ptr, out_ptr, lse_ptr,
    v_batch, v_token, v_head, l, v_dims, scale, rate_scale,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    block = tl.program_id(0)
    if CAUSAL:
        # The longest come first.
        block = tl.num_programs(0) - 1 - block
    start = block * BLOCK_Q
    end = tl.minimum(start + BLOCK_Q, l)
    query = start + tl.arange(0, BLOCK_Q)
    inside = query < l
    rate = tl.load(decay_ptr + head) * rate_scale

    row = (batch * heads + head) * l
    k_rows = k_ptr + row * K_DIMS
    v_rows = v_ptr + batch * v_batch + head * v_head
    q_tile = q_ptr + (row + query)[:, None] * K_DIMS + tl.arange(0, K_DIMS)[None, :]
    q = tl.load(q_tile, mask=inside[:, None], other=0.0)
    out = tl.zeros([BLOCK_Q, V_DIMS], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)

    first, last = start.to(tl.float32), (end - 1).to(tl.float32)
    out, total, top = _attend(
        out, total, top, q, query, k_rows, v_rows, v_token, v_dims, l, 0, start, first, rate, scale,
        True, False, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    out, total, top = _attend(
        out, total, top, q, query, k_rows, v_rows, v_token, v_dims, l, start, end, first, rate, scale,
        False, True, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    if not CAUSAL:
        out, total, top = _attend(
            out, total, top, q, query, k_rows, v_rows, v_token, v_dims, l, end, l, last, rate, scale,
            True, True, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
        )  # fmt: skip

    v_channel = tl.arange(0, V_DIMS)
    out_tile = out_ptr + ((batch * l + query) * heads + head)[:, None] * v_dims + v_channel[None, :]
    out_mask = inside[:, None] & (v_channel < v_dims)[None, :]
    tl.store(out_tile, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=out_mask)
    tl.store(lse_ptr + row + query, top + tl.log2(total), mask=inside)


@triton.jit
def _gradient_of_queries(
    dq, ddecay, q, grad, lse, inner, query, k_ptr, v_ptr, v_token, v_dims, l, low, high, between, rate, scale,
    FAR: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_K: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what the keys from ``low`` to ``high`` give to the gradients of a block of queries and of λ."""
    step, v_channel = tl.arange(0, BLOCK_K), tl.arange(0, V_DIMS)
    k_at = step[:, None] * K_DIMS + tl.arange(0, K_DIMS)[None, :]
    v_at = step[:, None] * v_token + v_channel[None, :]
    for first in range(low, high, BLOCK_K):
        key = first + step
        v_mask = (v_channel < v_dims)[None, :]
        k_tile = k_ptr + tl.cast(first, tl.int64) * K_DIMS + k_at
        v_tile = v_ptr + tl.cast(first, tl.int64) * v_token + v_at
        if MASKED:
            v_mask &= (key < l)[:, None]
            k = tl.load(k_tile, mask=(key < l)[:, None], other=0.0)
        else:
            k = tl.load(k_tile)
        v = tl.load(v_tile, mask=v_mask, other=0.0)
        t, s = query.to(tl.float32), key.to(tl.float32)
        decay = _decay(t, s, between, rate, scale, FAR)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * decay
        p = tl.exp2(scores - lse[:, None])
        if MASKED:
            visible = (key < l)[None, :]
            if CAUSAL:
                visible &= key[None, :] <= query[:, None]
            p = tl.where(visible, p, 0.0)
        dscores = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - inner[:, None])
        ddecay += tl.sum(dscores * scores * tl.abs(t[:, None] - s[None, :]), 1)
        dq = tl.dot((dscores * decay).to(k.dtype), k, dq, input_precision=PRECISION)
    return dq, ddecay


@triton.jit(do_not_specialize=["l"])
def _query_gradient_kernel(
    grad_ptr, out_ptr, lse_ptr, q_ptr, k_ptr, v_ptr, decay_ptr, dq_ptr, inner_ptr, ddecay_ptr,
    grad_batch, grad_token, grad_head, v_batch, v_token, v_head, l, v_dims, scale, rate_scale,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the turned queries; ⟨gradient, output⟩ of each; a partial sum of delta_scale · dλ."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block
    start = block * BLOCK_Q
    end = tl.minimum(start + BLOCK_Q, l)
    query = start + tl.arange(0, BLOCK_Q)
    inside = query < l
    rate = tl.load(decay_ptr + head) * rate_scale

    row = (batch * heads + head) * l
    k_rows = k_ptr + row * K_DIMS
    v_rows = v_ptr + batch * v_batch + head * v_head
    channel, v_channel = tl.arange(0, K_DIMS), tl.arange(0, V_DIMS)
    q = tl.load(q_ptr + (row + query)[:, None] * K_DIMS + channel[None, :], mask=inside[:, None], other=0.0)
    v_mask = inside[:, None] & (v_channel < v_dims)[None, :]
    grad_rows = grad_ptr + batch * grad_batch + head * grad_head
    grad = tl.load(grad_rows + query[:, None].to(tl.int64) * grad_token + v_channel[None, :], mask=v_mask, other=0.0)
    out_tile = out_ptr + ((batch * l + query) * heads + head)[:, None] * v_dims + v_channel[None, :]
    out = tl.load(out_tile, mask=v_mask, other=0.0).to(tl.float32)
    inner = tl.sum(grad.to(tl.float32) * out, 1)
    tl.store(inner_ptr + row + query, inner, mask=inside)
    lse = tl.load(lse_ptr + row + query, mask=inside, other=float("inf"))

    dq = tl.zeros([BLOCK_Q, K_DIMS], tl.float32)
    ddecay = tl.zeros([BLOCK_Q], tl.float32)
    first, last = start.to(tl.float32), (end - 1).to(tl.float32)
    dq, ddecay = _gradient_of_queries(
        dq, ddecay, q, grad, lse, inner, query, k_rows, v_rows, v_token, v_dims, l, 0, start, first, rate, scale,
        True, False, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    dq, ddecay = _gradient_of_queries(
        dq, ddecay, q, grad, lse, inner, query, k_rows, v_rows, v_token, v_dims, l, start, end, first, rate, scale,
        False, True, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    if not CAUSAL:
        dq, ddecay = _gradient_of_queries(
            dq, ddecay, q, grad, lse, inner, query, k_rows, v_rows, v_token, v_dims, l, end, l, last, rate, scale,
            True, True, CAUSAL, BLOCK_K, K_DIMS, V_DIMS, PRECISION,
        )  # fmt: skip
    tl.store(dq_ptr + (row + query)[:, None] * K_DIMS + channel[None, :], dq * _LN_2, mask=inside[:, None])
    part = (batch * tl.num_programs(0) + block) * heads + head
    tl.store(ddecay_ptr + part, tl.sum(ddecay, 0) * _LN_2)


@triton.jit
def _gradient_of_keys(
    dk, dv, k, v, key, grad_ptr, lse_ptr, inner_ptr, q_ptr, grad_token, v_dims, low, high, between, rate, scale,
    FAR: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_Q: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what the queries from ``low`` to ``high`` give to the gradients of a block of keys and their values."""
    step, v_channel = tl.arange(0, BLOCK_Q), tl.arange(0, V_DIMS)
    q_at = step[:, None] * K_DIMS + tl.arange(0, K_DIMS)[None, :]
    grad_at = step[:, None] * grad_token + v_channel[None, :]
    for first in range(low, high, BLOCK_Q):
        query = first + step
        v_mask = (v_channel < v_dims)[None, :]
        q_tile = q_ptr + tl.cast(first, tl.int64) * K_DIMS + q_at
        grad_tile = grad_ptr + tl.cast(first, tl.int64) * grad_token + grad_at
        if MASKED:
            v_mask &= (query < high)[:, None]
            q = tl.load(q_tile, mask=(query < high)[:, None], other=0.0)
            # No key has a share in a query that is not there, or is of another range.
            lse = tl.load(lse_ptr + query, mask=query < high, other=float("inf"))
            inner = tl.load(inner_ptr + query, mask=query < high, other=0.0)
        else:
            q = tl.load(q_tile)
            lse = tl.load(lse_ptr + query)
            inner = tl.load(inner_ptr + query)
        grad = tl.load(grad_tile, mask=v_mask, other=0.0)
        decay = _decay(key.to(tl.float32), query.to(tl.float32), between, rate, scale, FAR)
        p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * decay - lse[None, :])
        if MASKED and CAUSAL:
            p = tl.where(key[:, None] <= query[None, :], p, 0.0)
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dscores = p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - inner[None, :])
        dk = tl.dot((dscores * decay).to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["l"])
def _key_gradient_kernel(
    grad_ptr, lse_ptr, inner_ptr, q_ptr, k_ptr, v_ptr, decay_ptr, dk_ptr, dv_ptr,
    grad_batch, grad_token, grad_head, v_batch, v_token, v_head, l, v_dims, scale, rate_scale,
    CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, K_DIMS: tl.constexpr, V_DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the turned keys and of the values."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    start = tl.program_id(0) * BLOCK_K
    end = tl.minimum(start + BLOCK_K, l)
    key = start + tl.arange(0, BLOCK_K)
    inside = key < l
    rate = tl.load(decay_ptr + head) * rate_scale

    row = (batch * heads + head) * l
    q_rows, lse_rows, inner_rows = q_ptr + row * K_DIMS, lse_ptr + row, inner_ptr + row
    grad_rows = grad_ptr + batch * grad_batch + head * grad_head
    channel, v_channel = tl.arange(0, K_DIMS), tl.arange(0, V_DIMS)
    k_at = (row + key)[:, None] * K_DIMS + channel[None, :]
    k = tl.load(k_ptr + k_at, mask=inside[:, None], other=0.0)
    v_mask = inside[:, None] & (v_channel < v_dims)[None, :]
    v_rows = v_ptr + batch * v_batch + head * v_head
    v = tl.load(v_rows + key[:, None].to(tl.int64) * v_token + v_channel[None, :], mask=v_mask, other=0.0)

    dk = tl.zeros([BLOCK_K, K_DIMS], tl.float32)
    dv = tl.zeros([BLOCK_K, V_DIMS], tl.float32)
    first, last = start.to(tl.float32), (end - 1).to(tl.float32)
    if not CAUSAL:
        dk, dv = _gradient_of_keys(
            dk, dv, k, v, key, grad_rows, lse_rows, inner_rows, q_rows, grad_token, v_dims, 0, start, first,
            rate, scale, True, True, CAUSAL, BLOCK_Q, K_DIMS, V_DIMS, PRECISION,
        )  # fmt: skip
    dk, dv = _gradient_of_keys(
        dk, dv, k, v, key, grad_rows, lse_rows, inner_rows, q_rows, grad_token, v_dims, start, end, first,
        rate, scale, False, True, CAUSAL, BLOCK_Q, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    dk, dv = _gradient_of_keys(
        dk, dv, k, v, key, grad_rows, lse_rows, inner_rows, q_rows, grad_token, v_dims, end, l, last,
        rate, scale, True, True, False, BLOCK_Q, K_DIMS, V_DIMS, PRECISION,
    )  # fmt: skip
    tl.store(dk_ptr + k_at, dk * _LN_2, mask=inside[:, None])
    dv_tile = dv_ptr + ((batch * l + key) * heads + head)[:, None] * v_dims + v_channel[None, :]
    tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=v_mask)


def _settings(table, dtype, *widths):
    block_q, block_k, warps, stages = table[dtype]
    # A block of wide heads has as many numbers as one of the published width.
    times = max(1, max(widths) // PUBLISHED_WIDTH)
    return max(16, block_q // times), max(16, block_k // times), warps, stages


def _prepare(q, k, v, decay, freq, rope_scale, delta_scale):
    dtype = working_dtype(q, k, v)
    turned_q, turned_k = turn(q, k, freq, rope_scale, dtype)
    # Scores in base 2: the exponential is one instruction there.
    scales = (q.shape[-1] ** -0.5 * LOG2_E, LOG2_E / delta_scale)
    return turned_q, turned_k, rows_adjacent(v.to(dtype)), decay.float().contiguous(), scales


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """See `decay_attention`.

    Returns:
        The output, and the logarithm to base 2 of each query's sum of exponentials, `(b, h, l)`, fp32.

    Raises:
        ValueError: q, k or v in another dtype than fp32, bf16 and fp16.
    """
    (b, l, h, _), v_dims = q.shape, v.shape[-1]
    with torch.cuda.device_of(q):
        turned_q, turned_k, v, decay, scales = _prepare(q, k, v, decay, freq, rope_scale, delta_scale)
        out = torch.empty(b, l, h, v_dims, dtype=q.dtype, device=q.device)
        lse = torch.empty(b, h, l, dtype=torch.float32, device=q.device)
        widths = turned_q.shape[-1], padded(v_dims)
        block_q, block_k, warps, stages = _settings(FORWARD, v.dtype, *widths)
        _forward_kernel[(ceil_div(l, block_q), h, b)](
            turned_q, turned_k, v, decay, out, lse, *v.stride()[:3], l, v_dims, *scales,
            CAUSAL=causal, BLOCK_Q=block_q, BLOCK_K=block_k, K_DIMS=widths[0], V_DIMS=widths[1],
            PRECISION=dot_precision(q.device), num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their dtypes, of λ and θ in float64."""
    (b, l, h, k_dims), v_dims = q.shape, v.shape[-1]
    fp32 = dict(dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        dq, dk = (torch.empty(b, l, h, k_dims, dtype=x.dtype, device=q.device) for x in (q, k))
        dv = torch.empty(b, l, h, v_dims, dtype=v.dtype, device=q.device)
        turned_q, turned_k, v, decay, scales = _prepare(q, k, v, decay, freq, rope_scale, delta_scale)
        grad = rows_adjacent(grad.to(v.dtype))
        dturned_q, dturned_k = (torch.empty(turned_q.shape, **fp32) for _ in range(2))
        inner = torch.empty(b, h, l, **fp32)
        widths = turned_q.shape[-1], padded(v_dims)
        sizes = dict(CAUSAL=causal, K_DIMS=widths[0], V_DIMS=widths[1], PRECISION=dot_precision(q.device))
        strides = (*grad.stride()[:3], *v.stride()[:3])

        block_q, block_k, warps, stages = _settings(QUERY_GRADIENT, v.dtype, *widths)
        blocks = ceil_div(l, block_q)
        ddecay = torch.empty(b, blocks, h, **fp32)
        _query_gradient_kernel[(blocks, h, b)](
            grad, out, lse, turned_q, turned_k, v, decay, dturned_q, inner, ddecay, *strides, l, v_dims, *scales,
            BLOCK_Q=block_q, BLOCK_K=block_k, **sizes, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        block_q, block_k, warps, stages = _settings(KEY_GRADIENT, v.dtype, *widths)
        _key_gradient_kernel[(ceil_div(l, block_k), h, b)](
            grad, lse, inner, turned_q, turned_k, v, decay, dturned_k, dv, *strides, l, v_dims, *scales,
            BLOCK_Q=block_q, BLOCK_K=block_k, **sizes, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        dfreq = turn_back(turned_q, turned_k, dturned_q, dturned_k, freq, rope_scale, dq, dk)
    return dq, dk, dv, ddecay.sum((0, 1), dtype=torch.float64) / delta_scale, dfreq

"""The causal depthwise convolution and SiLU as Triton kernels, forward and backward.

A program walks along `TILE` tokens of `BLOCK_D` channels, with as many tokens in registers as there are taps: every
element is read once. Backward rebuilds what entered SiLU from x, so that nothing but the inputs is kept. Gradients of
weight and bias are partial sums of tiles, added in a fixed order: two runs give the same bits.
"""

# Triton knows no unpacking in a tuple.
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.ops.dispatch import check_triton_dtypes
from backbones.ops.gpu import ceil_div
from backbones.ops.layout import rows_adjacent
from backbones.ops.triton_functions import sigmoid

TILE = 32
BLOCK_D = 128


@triton.jit
def _row(rows, t, stride, left, channel_mask):
    # Compared as tensors: of two numbers the interpreter makes a Python bool, which is no mask to it.
    token = tl.zeros(channel_mask.shape, tl.int32) + t
    return tl.load(rows + t * stride, mask=channel_mask & (token < left), other=0.0).to(tl.float32)


@triton.jit
def _taps(weight_ptr, channel, channel_mask, K: tl.constexpr):
    taps = ()
    for j in tl.static_range(K):
        taps = taps + (tl.load(weight_ptr + channel * K + j, mask=channel_mask, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _history(rows, stride, first, channel_mask, K: tl.constexpr):
    """The K - 1 tokens before a tile; zeros before the first of the sequence."""
    window = ()
    for j in tl.static_range(K - 1):
        before = K - 1 - j
        inside = channel_mask & (tl.zeros(channel_mask.shape, tl.int64) + first >= before)
        window = window + (tl.load(rows - before * stride, mask=inside, other=0.0).to(tl.float32),)
    return window


@triton.jit(do_not_specialize=["l"])
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, x_batch, x_token, l, d, blocks,
    K: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    first = (tl.program_id(0) // blocks).to(tl.int64) * TILE
    channel = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    channel_mask = channel < d
    left = tl.minimum(l - first, TILE).to(tl.int32)
    x_rows = x_ptr + batch * x_batch + first * x_token + channel
    out_rows = out_ptr + (batch * l + first) * d + channel
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    taps = _taps(weight_ptr, channel, channel_mask, K)
    xs = _history(x_rows, x_token, first, channel_mask, K)

    x = _row(x_rows, 0, x_token, left, channel_mask)
    for t in range(0, left):
        next_x = _row(x_rows, t + 1, x_token, left, channel_mask)
        xs = xs + (x,)
        out = bias
        for j in tl.static_range(K):
            out += taps[j] * xs[j]
        out *= sigmoid(out)
        tl.store(out_rows + t * d, out.to(out_ptr.dtype.element_ty), mask=channel_mask)
        xs, x = xs[1:], next_x


@triton.jit(do_not_specialize=["l"])
def _backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, dx_ptr, dweight_ptr, dbias_ptr,
    grad_batch, grad_token, x_batch, x_token, dx_batch, dx_token, l, d, blocks,
    K: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    tile = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    channel_mask = channel < d
    first = tile * TILE
    left = tl.minimum(l - first, TILE + K - 1).to(tl.int32)
    x_rows = x_ptr + batch * x_batch + first * x_token + channel
    grad_rows = grad_ptr + batch * grad_batch + first * grad_token + channel
    dx_rows = dx_ptr + batch * dx_batch + first * dx_token + channel
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    taps = _taps(weight_ptr, channel, channel_mask, K)
    xs = _history(x_rows, x_token, first, channel_mask, K)

    zero = tl.zeros([BLOCK_D], tl.float32)
    grads, dtaps, dbias = (zero,) * (K - 1), (zero,) * K, zero
    x = _row(x_rows, 0, x_token, left, channel_mask)
    grad = _row(grad_rows, 0, grad_token, left, channel_mask)
    # x_t reaches the outputs t to t + K - 1: its gradient is whole K - 1 steps later.
    for t in range(0, TILE + K - 1):
        next_x = _row(x_rows, t + 1, x_token, left, channel_mask)
        next_grad = _row(grad_rows, t + 1, grad_token, left, channel_mask)
        xs = xs + (x,)
        before = bias
        for j in tl.static_range(K):
            before += taps[j] * xs[j]
        gate = sigmoid(before)
        grads = grads + (grad * gate * (1.0 + before * (1.0 - gate)),)

        # The next tile counts its own tokens.
        own = tl.where(t < TILE, grads[K - 1], 0.0)
        dbias += own
        sums = ()
        dx = zero
        for j in tl.static_range(K):
            sums = sums + (dtaps[j] + own * xs[j],)
            dx += taps[K - 1 - j] * grads[j]
        dtaps = sums
        token = tl.zeros([BLOCK_D], tl.int32) + (t - (K - 1))
        inside = channel_mask & (token >= 0) & (token < left)
        tl.store(dx_rows + (t - (K - 1)) * dx_token, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        xs, grads, x, grad = xs[1:], grads[1:], next_x, next_grad

    partial = (batch * tl.cdiv(l, TILE) + tile) * d + channel
    tl.store(dbias_ptr + partial, dbias, mask=channel_mask)
    for j in tl.static_range(K):
        tl.store(dweight_ptr + partial * K + j, dtaps[j], mask=channel_mask)


def _prepare(x, weight, bias):
    check_triton_dtypes(x=x)
    return rows_adjacent(x), weight.contiguous(), bias.contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `causal_conv1d_silu`.

    Raises:
        ValueError: x in another dtype than fp32, bf16 and fp16.
    """
    x, weight, bias = _prepare(x, weight, bias)
    b, l, d = x.shape
    blocks = ceil_div(d, BLOCK_D)
    out = torch.empty(b, l, d, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _forward_kernel[(blocks * ceil_div(l, TILE), b)](
            x, weight, bias, out, *x.stride()[:2], l, d, blocks,
            K=weight.shape[-1], TILE=TILE, BLOCK_D=BLOCK_D, num_warps=1,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dx: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (written to ``dx`` if given), weight `(d, 1, k)` and bias, the latter two in fp32."""
    grad = rows_adjacent(grad)
    x, weight, bias = _prepare(x, weight, bias)
    (b, l, d), k = x.shape, weight.shape[-1]
    blocks, tiles = ceil_div(d, BLOCK_D), ceil_div(l, TILE)
    dx = torch.empty(b, l, d, dtype=x.dtype, device=x.device) if dx is None else dx
    dweight = torch.empty(b * tiles, d, 1, k, dtype=torch.float32, device=x.device)
    dbias = torch.empty(b * tiles, d, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(blocks * tiles, b)](
            grad, x, weight, bias, dx, dweight, dbias,
            *grad.stride()[:2], *x.stride()[:2], *dx.stride()[:2], l, d, blocks,
            K=k, TILE=TILE, BLOCK_D=BLOCK_D, num_warps=1,
        )  # fmt: skip
    return dx, dweight.sum(0), dbias.sum(0)

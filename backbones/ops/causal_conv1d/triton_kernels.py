"""The causal depthwise convolution and SiLU as Triton kernels, forward and backward.

A program takes a tile of tokens and channels. Backward rebuilds what entered SiLU from x, so that nothing but
the inputs is kept. Gradients of weight and bias are partial sums of tiles, added in a fixed order: two runs
give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 32
BLOCK_D = 64


@triton.jit
def _tap(rows, token, stride, l, channel_mask):
    mask = ((token >= 0) & (token < l))[:, None] & channel_mask[None, :]
    return tl.load(rows + token[:, None] * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _before_silu(x_rows, weight_ptr, bias, channel, token, x_token, l, channel_mask, K: tl.constexpr):
    out = tl.zeros([token.shape[0], channel.shape[0]], tl.float32) + bias[None, :]
    for j in tl.static_range(K):
        weight = tl.load(weight_ptr + channel * K + j, mask=channel_mask, other=0.0).to(tl.float32)
        out += weight[None, :] * _tap(x_rows, token - (K - 1 - j), x_token, l, channel_mask)
    return out


@triton.jit(do_not_specialize=["l"])
def _forward_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, x_batch, x_token, l, d, blocks,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    token = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel_mask = channel < d
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    x_rows = x_ptr + batch * x_batch + channel[None, :]

    out = _before_silu(x_rows, weight_ptr, bias, channel, token, x_token, l, channel_mask, K)
    out *= tl.sigmoid(out)
    out_tile = out_ptr + (batch * l + token)[:, None] * d + channel[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=(token < l)[:, None] & channel_mask[None, :])


@triton.jit(do_not_specialize=["l"])
def _backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, dx_ptr, dweight_ptr, dbias_ptr,
    grad_batch, grad_token, x_batch, x_token, l, d, blocks,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    tile = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    token = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    channel_mask = channel < d
    bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0).to(tl.float32)
    x_rows = x_ptr + batch * x_batch + channel[None, :]
    grad_rows = grad_ptr + batch * grad_batch + channel[None, :]
    partial = batch * tl.cdiv(l, BLOCK_T) + tile

    dx = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    # x_t reaches the outputs t to t + K - 1; the gradient before SiLU is rebuilt at each of them.
    for ahead in tl.static_range(K):
        before = _before_silu(x_rows, weight_ptr, bias, channel, token + ahead, x_token, l, channel_mask, K)
        sigmoid = tl.sigmoid(before)
        grad = _tap(grad_rows, token + ahead, grad_token, l, channel_mask)
        grad *= sigmoid * (1.0 + before * (1.0 - sigmoid))
        weight = tl.load(weight_ptr + channel * K + (K - 1 - ahead), mask=channel_mask, other=0.0).to(tl.float32)
        dx += weight[None, :] * grad
        if ahead == 0:
            tl.store(dbias_ptr + partial * d + channel, tl.sum(grad, 0), mask=channel_mask)
            for j in tl.static_range(K):
                x = _tap(x_rows, token - (K - 1 - j), x_token, l, channel_mask)
                tl.store(dweight_ptr + (partial * d + channel) * K + j, tl.sum(grad * x, 0), mask=channel_mask)
    dx_tile = dx_ptr + (batch * l + token)[:, None] * d + channel[None, :]
    tl.store(dx_tile, dx.to(dx_ptr.dtype.element_ty), mask=(token < l)[:, None] & channel_mask[None, :])


def _prepare(x, weight, bias):
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"the triton backend works in fp32 on fp32, bf16 or fp16, got x in {x.dtype}: "
            'cast it, or choose backend="torch"'
        )
    return x if x.stride(-1) == 1 else x.contiguous(), weight.contiguous(), bias.contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `causal_conv1d_silu`.

    Raises:
        ValueError: x in another dtype than fp32, bf16 and fp16.
    """
    x, weight, bias = _prepare(x, weight, bias)
    b, l, d = x.shape
    blocks = triton.cdiv(d, BLOCK_D)
    out = torch.empty(b, l, d, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        _forward_kernel[(blocks * triton.cdiv(l, BLOCK_T), b)](
            x, weight, bias, out, *x.stride()[:2], l, d, blocks,
            K=weight.shape[-1], BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=4,
        )  # fmt: skip
    return out


def backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight `(d, 1, k)` and bias, the latter two in fp32."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    x, weight, bias = _prepare(x, weight, bias)
    (b, l, d), k = x.shape, weight.shape[-1]
    blocks, tiles = triton.cdiv(d, BLOCK_D), triton.cdiv(l, BLOCK_T)
    dx = torch.empty(b, l, d, dtype=x.dtype, device=x.device)
    dweight = torch.empty(b * tiles, d, 1, k, dtype=torch.float32, device=x.device)
    dbias = torch.empty(b * tiles, d, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _backward_kernel[(blocks * tiles, b)](
            grad, x, weight, bias, dx, dweight, dbias, *grad.stride()[:2], *x.stride()[:2], l, d, blocks,
            K=k, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=4,
        )  # fmt: skip
    return dx, dweight.sum(0), dbias.sum(0)

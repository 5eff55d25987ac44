"""Kernels whose costs are known beforehand."""

import torch
import triton
import triton.language as tl

BLOCK = 128


@triton.jit(do_not_specialize=["rounds"])
def repeat_kernel(x_ptr, out_ptr, rounds, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    for _ in range(rounds):
        x = tl.exp2(x)
    tl.store(out_ptr + at, x)


@triton.jit
def triangle_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """As causal attention: a program reads as many blocks as its number says, and its own."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(0, tl.program_id(0) + 1):
        total += tl.exp2(tl.load(x_ptr + block * BLOCK + lane))
    tl.store(out_ptr + tl.program_id(0) * BLOCK + lane, total)


@triton.jit
def crowded_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """Needs all it reads until the end: more than its threads may hold, if they are few or get few registers."""
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, x / tl.sum(x, 0))


def repeat(programs: int, rounds: int) -> torch.Tensor:
    x = torch.empty(programs * BLOCK, device="cuda")
    out = torch.empty_like(x)
    repeat_kernel[(programs,)](x, out, rounds, BLOCK=BLOCK, num_warps=1)
    return out


def triangle(programs: int) -> torch.Tensor:
    x = torch.empty(programs * BLOCK, device="cuda")
    out = torch.empty_like(x)
    triangle_kernel[lambda meta: (programs,)](x, out, BLOCK=BLOCK, num_warps=1)
    return out


def crowded(maxnreg: int) -> torch.Tensor:
    x = torch.empty(4096, device="cuda")
    out = torch.empty_like(x)
    crowded_kernel[(1,)](x, out, BLOCK=4096, num_warps=1, maxnreg=maxnreg)
    return out

"""Functions of numbers that several Triton kernels use."""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def reciprocal(x):
    """1 / x of what is at least 1, right to 3e-7."""
    # Two instructions, where a division takes care of numbers that do not come.
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    # The constant stands on the right for the interpreter of Triton 3.9, as in the scan's kernels.
    return reciprocal(1.0 + tl.exp2(x * -_LOG2_E))

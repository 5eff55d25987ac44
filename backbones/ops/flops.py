"""Floating-point operations of each operation: the one place that says which formula is taken.

A multiply-add counts two. What is counted is what the operation has to compute, not what one of its backends does, so
that the number is the same on all of them:

| operation | FLOPs | source |
| --- | --- | --- |
| `defocus_scan` | 9·b·l·d·n + b·l·d + b·l·d | the field's: recurrence, skip, gate |
| `causal_conv1d_silu` | 2·b·l·d·k | as torch counts a depthwise convolution |
| `mamba_inner` | both, and 2·b·l·d·(r + 2·n) + 2·b·l·d·r | and the products between, r the rank of the steps |
| `decay_attention` | 2·b·h·p·(k + v), p = l² pairs of tokens, causal l·(l + 1) / 2 | both products |
| `retention` | 5·b·l·h·k·v, its recurrent form | decay 1, update 2, reading 2 an element of the state |
| `deformable_attention` | 10·b·q·h·maps·points·v | arXiv 2010.04159: 5 multiply-adds, 4 of them bilinear |

The field's formula of the scan counts single operations, its exponentials among them; that of all others is products
and sums alone, as torch's counter has it. The phase, the softmax, SiLU and the norms are in none of them.
"""

from collections.abc import Callable, Sequence

from torch import Tensor


def scan_flops(u: Tensor, dt: Tensor, A: Tensor, *_) -> int:
    """Of `defocus_scan`; arguments as its backends take them."""
    b, l, d = u.shape
    return 9 * b * l * d * A.shape[1] + 2 * b * l * d


def causal_conv1d_silu_flops(x: Tensor, weight: Tensor, *_) -> int:
    """Of `causal_conv1d_silu`; arguments as its backends take them."""
    return 2 * x.numel() * weight.shape[-1]


def mamba_inner_flops(
    xz: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj_weight: Tensor, dt_proj_weight: Tensor, *_
) -> int:
    """Of `mamba_inner`; arguments as its backends take them."""
    d, rank = dt_proj_weight.shape
    tokens, rows = xz.numel() // (2 * d), x_proj_weight.shape[0]
    states = (rows - rank) // 2
    return tokens * d * (2 * conv_weight.shape[-1] + 2 * rows + 2 * rank + 9 * states + 2)


def attention_flops(batch: int, length: int, heads: int, keys: int, values: int, causal: bool) -> int:
    """Both products of attention with itself, over the pairs of tokens that see each other.

    Args:
        batch: Sequences.
        length: Tokens of each.
        heads: Heads.
        keys: Width of a head's queries and keys.
        values: Width of a head's values.
        causal: Whether a token sees itself and earlier ones only.
    """
    pairs = length * (length + 1) // 2 if causal else length**2
    return 2 * batch * heads * pairs * (keys + values)


def decay_attention_flops(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float, causal: bool
) -> int:
    """Of `decay_attention`; arguments as its backends take them."""
    b, l, h, _ = q.shape
    return attention_flops(b, l, h, q.shape[3], v.shape[3], causal)


def retention_flops(q: Tensor, k: Tensor, v: Tensor, *_) -> int:
    """Of `retention`; arguments as its backends take them.

    The recurrent form, for it depends on no size of chunks. In chunks of c tokens, as its fast backends work, it is
    b·l·h·(2·c·(k + v) + 4·k·v): twice as much for c = 128, k = 64, v = 128.
    """
    return 5 * q.numel() * v.shape[3]


def deformable_attention_flops(value: Tensor, shapes: Sequence, locations: Tensor, weights: Tensor) -> int:
    """Of `deformable_attention`; arguments as its backends take them."""
    return 10 * weights.numel() * value.shape[3]


# By the name of the `Operation`.
FORMULAS: dict[str, Callable[..., int]] = {
    "defocus_scan": scan_flops,
    "causal_conv1d_silu": causal_conv1d_silu_flops,
    "mamba_inner": mamba_inner_flops,
    "decay_attention": decay_attention_flops,
    "retention": retention_flops,
    "deformable_attention": deformable_attention_flops,
}

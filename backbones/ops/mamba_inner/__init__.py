"""What a De-focus Mamba block does between its outer projections, as one operation."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from backbones.ops.causal_conv1d import CAUSAL_CONV1D, causal_conv1d_silu
from backbones.ops.dispatch import Backend, Operation, check_devices
from backbones.ops.mamba_inner.triton_backend import triton_mamba_inner
from backbones.ops.selective_scan import defocus_scan


def _separate(
    backend: str,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    A: Tensor,
    D: Tensor,
    freq: Tensor,
    rope_scale: float,
    delta_scale: float,
    norm_group_dims: int,
) -> Tensor:
    """Operation by operation: the definition."""
    return mamba_inner_by_calls(
        xz,
        conv_weight,
        conv_bias,
        lambda u: F.linear(u, x_proj_weight.to(u.dtype)),
        # The bias joins in the scan, in fp32.
        lambda low_rank: F.linear(low_rank, dt_proj_weight.to(low_rank.dtype)),
        dt_proj_bias,
        A,
        D,
        freq,
        rope_scale=rope_scale,
        delta_scale=delta_scale,
        norm_group_dims=norm_group_dims,
        backend=backend,
    )


def mamba_inner_by_calls(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Callable[[Tensor], Tensor],
    dt_proj: Callable[[Tensor], Tensor],
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    freq: Tensor,
    *,
    rope_scale: float = 1.0,
    delta_scale: float = 1.0,
    norm_group_dims: int = 64,
    backend: str | None = None,
) -> Tensor:
    """As `mamba_inner`, with both projections called, whatever they are.

    Args:
        xz: As of `mamba_inner`, and so all others but these.
        conv_weight: The same.
        conv_bias: The same.
        x_proj: `(b, l, d)` to `(b, l, r + 2 n)`: the low rank of the step sizes, B and C.
        dt_proj: `(b, l, r)` to `(b, l, d)`.
        dt_bias: What is still to be added to the steps, `(d,)`.
        A: The same.
        D: The same.
        freq: The same.
        rope_scale: The same.
        delta_scale: The same.
        norm_group_dims: The same.
        backend: The same.
    """
    x, z = xz.chunk(2, dim=-1)
    u = causal_conv1d_silu(x, conv_weight, conv_bias, backend=backend)
    projected, states = x_proj(u).to(u.dtype), A.shape[1]
    low_rank, B, C = projected.split([projected.shape[-1] - 2 * states, states, states], dim=-1)
    return defocus_scan(
        u,
        dt_proj(low_rank).to(u.dtype),
        A,
        B,
        C,
        D,
        z,
        freq,
        dt_bias,
        rope_scale=rope_scale,
        delta_scale=delta_scale,
        norm_group_dims=norm_group_dims,
        backend=backend,
    )


# The backends of the convolution and of the scan are the same; that of Triton keeps less for backward.
MAMBA_INNER = Operation(
    "mamba_inner",
    tuple(
        Backend(
            name,
            triton_mamba_inner if name == "triton" else partial(_separate, name),
            backend.refusal,
            backend.automatic,
            backend.may_differ,
        )
        for name, backend in CAUSAL_CONV1D.backends.items()
    ),
    environment="DEFOCUS_SCAN_BACKEND",
)


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor,
    A: Tensor,
    D: Tensor,
    freq: Tensor,
    *,
    rope_scale: float = 1.0,
    delta_scale: float = 1.0,
    norm_group_dims: int = 64,
    backend: str | None = None,
) -> Tensor:
    """Causal convolution, the projections to Δ, B and C, and the De-focus scan (eq. 9, steps 1 to 6 without `in_proj`).

    Products are in the dtype of ``xz``, also under autocast, which has set it by then.

    Args:
        xz: What is scanned, and the gate, `(b, l, 2 d)`.
        conv_weight: `(d, 1, k)`.
        conv_bias: `(d,)`.
        x_proj_weight: `(r + 2 n, d)`: rows of the step sizes' low rank, of B and of C.
        dt_proj_weight: `(d, r)`.
        dt_proj_bias: `(d,)`.
        A: Decay rates, negative, `(d, n)`.
        D: Weight of the skip, `(d,)`.
        freq: Phase θ of each state, `(n,)`, radians per position.
        rope_scale: Divides the position.
        delta_scale: Divides Δ.
        norm_group_dims: Channels that share one root mean square; divides d.
        backend: A name to force a backend; None chooses by device, see `backbones.ops.dispatch`.

    Returns:
        `(b, l, d)` in the dtype of ``xz``.

    Raises:
        ValueError: Shapes that do not fit, inputs on several devices, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    d, rank, n = D.shape[0], dt_proj_weight.shape[1], A.shape[1]
    if xz.shape[-1] != 2 * d or x_proj_weight.shape != (rank + 2 * n, d):
        raise ValueError(
            f"with {d} channels, {n} states and rank {rank}, xz must be (b, l, {2 * d}) and x_proj_weight "
            f"{(rank + 2 * n, d)}, got {tuple(xz.shape)} and {tuple(x_proj_weight.shape)}"
        )
    tensors = dict(
        xz=xz,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        x_proj_weight=x_proj_weight,
        dt_proj_weight=dt_proj_weight,
        dt_proj_bias=dt_proj_bias,
        A=A,
        D=D,
        freq=freq,
    )
    check_devices(**tensors)
    return MAMBA_INNER.run(backend, *tensors.values(), float(rope_scale), float(delta_scale), norm_group_dims)

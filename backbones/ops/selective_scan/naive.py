"""The De-focus scan step by step: the definition that every backend is held to."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation(length: int, freq: Tensor, rope_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Positions `(l, 1)` divided by ``rope_scale``, and cosine and sine `(l, n)` of their angles."""
    position = (torch.arange(length, device=freq.device, dtype=freq.dtype) / rope_scale)[:, None]
    angle = position * freq
    return position, angle.cos(), angle.sin()


def quarter_turn(x: Tensor) -> Tensor:
    """(x_0, x_1, x_2, x_3, ...) to (-x_1, x_0, -x_3, x_2, ...) along the last dimension."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def rotate_states(x: Tensor, freq: Tensor, rope_scale: float) -> Tensor:
    """Turns pairs of states by the learned phase (eq. 9, e^{iθt}), one frequency per state.

    Args:
        x: B or C, `(b, l, n)`, n even.
        freq: θ, `(n,)`, radians per position.
        rope_scale: Divides the position.

    Returns:
        `(b, l, n)` in the dtype of ``freq``, which is never a 16-bit one here.
    """
    _, cos, sin = rotation(x.shape[1], freq, rope_scale)
    x = x.to(freq.dtype)
    return x * cos + quarter_turn(x) * sin


NORM_EPS = 1e-6


def group_rms_norm(y: Tensor, group_dims: int) -> Tensor:
    """`(b, l, d)` divided by the root mean square of each group of ``group_dims`` neighbouring channels."""
    groups = y.unflatten(-1, (-1, group_dims))
    return (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + NORM_EPS)).flatten(-2)


def naive_defocus_scan(
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
) -> Tensor:
    """Reads like the formula; see `defocus_scan` for the arguments. Differentiated by autograd, any float dtype."""
    out_dtype = u.dtype
    work = torch.promote_types(u.dtype, torch.float32)
    u, dt, z, A, D, freq, dt_bias = (x.to(work) for x in (u, dt, z, A, D, freq, dt_bias))
    B = rotate_states(B, freq, rope_scale)
    C = rotate_states(C, freq, rope_scale)
    delta = F.softplus(dt + dt_bias) / delta_scale

    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(ys, dim=1)

    y = group_rms_norm(y, norm_group_dims) + D * u
    return (y * F.silu(z)).to(out_dtype)

"""The De-focus scan in plain PyTorch with bounded memory: the backend that runs everywhere.

A chunk of tokens is handled at a time: everything but the recurrence itself is done for the whole chunk at once.
Forward keeps the state before each chunk, backward rebuilds the states of one chunk from it, so that the states of
all tokens never exist together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.selective_scan.naive import (
    NORM_EPS,
    group_rms_norm,
    quarter_turn,
    rotate_states,
    rotation,
)
from backbones.ops.selective_scan.registration import register_scan

CHUNK = 32


def _states_of_chunk(h: Tensor, decay: Tensor, x: Tensor) -> Tensor:
    """States before and after every token of a chunk.

    Args:
        h: State before the chunk, `(b, d, n)`.
        decay: exp(ΔA), `(t, b, d, n)`.
        x: ΔuB, `(t, b, d, n)`.

    Returns:
        `(t + 1, b, d, n)`, the first being ``h``.
    """
    states = h.new_empty(decay.shape[0] + 1, *h.shape)
    states[0] = h
    for t in range(decay.shape[0]):
        torch.addcmul(x[t], decay[t], states[t], out=states[t + 1])
    return states


def _finish(y, u, z, D, norm_group_dims):
    return (group_rms_norm(y, norm_group_dims) + D * u) * F.silu(z)


def _finish_backward(grad, y, u, z, D, norm_group_dims):
    """Gradients of `_finish` by y, u and z, and by D summed over tokens."""
    groups = y.unflatten(-1, (-1, norm_group_dims))
    scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + NORM_EPS)
    normed = groups * scale
    sigmoid = torch.sigmoid(z)
    dz = grad * (normed.flatten(-2) + D * u) * sigmoid * (1 + z * (1 - sigmoid))
    ungated = grad * z * sigmoid
    dnormed = ungated.unflatten(-1, (-1, norm_group_dims))
    dy = scale * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))
    return dy.flatten(-2), ungated * D, dz, (ungated * u).flatten(0, 1).sum(0)


def _rotate_states_backward(grad, x, freq, rope_scale):
    """Gradients of `rotate_states` by x and freq."""
    position, cos, sin = rotation(x.shape[1], freq, rope_scale)
    dangle = grad * (quarter_turn(x) * cos - x * sin)
    return grad * cos - quarter_turn(grad * sin), (dangle * position).sum((0, 1))


def _forward(u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims):
    out_dtype = u.dtype
    work = torch.promote_types(u.dtype, torch.float32)
    u, dt, A, B, C, D, z, freq, dt_bias = (x.to(work) for x in (u, dt, A, B, C, D, z, freq, dt_bias))
    us, delta = u.transpose(0, 1), (F.softplus(dt + dt_bias) / delta_scale).transpose(0, 1)
    Bs, Cs = (rotate_states(x, freq, rope_scale).transpose(0, 1) for x in (B, C))

    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    y = torch.empty_like(us)
    before = []
    for start in range(0, u.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        before.append(h)
        states = _states_of_chunk(
            h, torch.exp(delta[part, :, :, None] * A), (delta[part] * us[part])[..., None] * Bs[part, :, None, :]
        )
        y[part] = torch.matmul(states[1:], Cs[part, :, :, None]).squeeze(-1)
        h = states[-1].clone()
    out = _finish(y.transpose(0, 1), u, z, D, norm_group_dims)
    return out.to(out_dtype).contiguous(), torch.stack(before, dim=1)


def _backward(grad, before, u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims):
    work = before.dtype
    grad, u, dt, A, B, C, D, z, freq, dt_bias = (x.to(work) for x in (grad, u, dt, A, B, C, D, z, freq, dt_bias))
    us, delta = u.transpose(0, 1), (F.softplus(dt + dt_bias) / delta_scale).transpose(0, 1)
    Bs, Cs = (rotate_states(x, freq, rope_scale).transpose(0, 1) for x in (B, C))
    grads, zs = grad.transpose(0, 1), z.transpose(0, 1)

    du, ddelta, dz = torch.empty_like(us), torch.empty_like(us), torch.empty_like(us)
    dB, dC = torch.empty_like(Bs), torch.empty_like(Cs)
    dA, dD = torch.zeros_like(A), torch.zeros_like(D)
    carry = torch.zeros_like(before[:, 0])
    for k in reversed(range(before.shape[1])):
        part = slice(k * CHUNK, (k + 1) * CHUNK)
        decay = torch.exp(delta[part, :, :, None] * A)
        du_in = (delta[part] * us[part])[..., None]
        states = _states_of_chunk(before[:, k], decay, du_in * Bs[part, :, None, :])
        y = torch.matmul(states[1:], Cs[part, :, :, None]).squeeze(-1)
        dy, du_skip, dz[part], dD_part = _finish_backward(grads[part], y, us[part], zs[part], D, norm_group_dims)
        dD += dD_part
        dC[part] = torch.matmul(dy[..., None, :], states[1:]).squeeze(-2)

        # The gradient of each state: what its own output asks for, and what the next state passes back.
        dh = dy[..., None] * Cs[part, :, None, :]
        for t in reversed(range(dh.shape[0])):
            dh[t] += carry
            carry = decay[t] * dh[t]
        dB[part] = torch.matmul(du_in.transpose(-1, -2), dh).squeeze(-2)
        dx = torch.matmul(dh, Bs[part, :, :, None]).squeeze(-1)
        ddecay = dh * states[:-1] * decay
        dA += torch.einsum("tbdn,tbd->dn", ddecay, delta[part])
        ddelta[part] = dx * us[part] + (ddecay * A).sum(-1)
        du[part] = dx * delta[part] + du_skip

    dB, dfreq_B = _rotate_states_backward(dB.transpose(0, 1), B, freq, rope_scale)
    dC, dfreq_C = _rotate_states_backward(dC.transpose(0, 1), C, freq, rope_scale)
    ddt = ddelta.transpose(0, 1) * torch.sigmoid(dt + dt_bias) / delta_scale
    du, dz = du.transpose(0, 1), dz.transpose(0, 1)
    return du, ddt, dA, dB, dC, dD, dz, dfreq_B + dfreq_C, ddt.sum((0, 1))


chunked_defocus_scan = register_scan("torch", _forward, _backward, CHUNK)

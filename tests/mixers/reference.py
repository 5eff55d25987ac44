"""The blocks of the three families written out in float64 from arXiv 2406.04342, for every pair of tokens at once.

Plain functions of weights by their names in `state_dict`; nothing of the package is called.
"""

import torch
from torch import Tensor


def vit_block(w: dict[str, Tensor], x: Tensor, heads: int, rope_scale: float, delta_scale: float, causal: bool):
    """Eq. 8: y_t = Σ_s softmax_s(e^{λ|t-s|} q_tᵀ e^{iθ(t-s)} k_s / √k) v_s, then a GELU MLP; (b, l, c) to the same."""
    qkv = _linear(w, "mixer.qkv", _layer_norm(w, "norm1", x))
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
    distance = _distance(x.shape[1])
    decay = torch.exp(-torch.exp(w["mixer.bandpass.log_rate"])[:, None, None] * distance.abs() / delta_scale)
    logits = decay * _turned_products(q, k, w["mixer.bandpass.freq"], rope_scale) / q.shape[-1] ** 0.5
    if causal:
        logits = torch.where(distance >= 0, logits, -torch.inf)
    share = torch.exp(logits - logits.amax(-1, keepdim=True))
    share = share / share.sum(-1, keepdim=True)
    x = x + _linear(w, "mixer.proj", torch.einsum("bhts,bshv->bthv", share, v).flatten(2))
    hidden = _linear(w, "mlp.0", _layer_norm(w, "norm2", x))
    gelu = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + _linear(w, "mlp.2", gelu)


def retnet_block(w: dict[str, Tensor], x: Tensor, heads: int, rope_scale: float, delta_scale: float):
    """Eq. 4: y_t = Σ_{s≤t} e^{λ(t-s)} e^{iθ(t-s)} (q_tᵀ k_s / √k) v_s, a norm a head, a SiLU gate, a gated FFN."""
    normed = _rms_norm(w, "norm1", x)
    q, k, v = (_linear(w, f"mixer.{name}_proj", normed).unflatten(-1, (heads, -1)) for name in "qkv")
    distance = _distance(x.shape[1])
    decay = torch.exp(-torch.exp(w["mixer.bandpass.log_rate"])[:, None, None] * distance.clamp_min(0) / delta_scale)
    products = _turned_products(q, k, w["mixer.bandpass.freq"], rope_scale) / q.shape[-1] ** 0.5
    y = torch.einsum("bhts,bshv->bthv", products * decay * (distance >= 0), v)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    x = x + _linear(w, "mixer.out_proj", y.flatten(2) * _silu(_linear(w, "mixer.gate_proj", normed)))
    normed = _rms_norm(w, "norm2", x)
    return x + _linear(w, "ffn.down", _silu(_linear(w, "ffn.gate", normed)) * _linear(w, "ffn.up", normed))


def mamba_block(w: dict[str, Tensor], x: Tensor, group: int, rope_scale: float, delta_scale: float):
    """Eq. 9: y_t = Σ_{s≤t} C_tᵀ exp(A(Δ_{s+1}+…+Δ_t)) Δ_s B_s u_s with B and C turned, a norm a group, skip, gate."""
    u, z = _linear(w, "mixer.in_proj", _rms_norm(w, "norm", x)).chunk(2, dim=-1)
    taps, length = w["mixer.conv1d.weight"][:, 0], x.shape[1]
    before = torch.cat((u.new_zeros(u.shape[0], taps.shape[1] - 1, u.shape[2]), u), dim=1)
    u = _silu(w["mixer.conv1d.bias"] + sum(taps[:, j] * before[:, j : j + length] for j in range(taps.shape[1])))
    states = w["mixer.A_log"].shape[1]
    low_rank, B, C = _linear(w, "mixer.x_proj", u).tensor_split((-2 * states, -states), dim=-1)
    delta = torch.log1p(torch.exp(_linear(w, "mixer.dt_proj", low_rank))) / delta_scale
    angle = torch.arange(length, dtype=x.dtype)[:, None] / rope_scale * w["mixer.freq"]
    B, C = (_turn_states(part, angle) for part in (B, C))
    # (b, t, s, d): the steps after s up to and with t.
    until = delta.cumsum(1)
    steps = until[:, :, None] - until[:, None]
    A = -torch.exp(w["mixer.A_log"])
    seen = (_distance(length) >= 0)[:, :, None, None]
    weight = torch.where(seen, torch.exp(torch.where(seen, steps[..., None] * A, 0.0)), 0.0)
    y = torch.einsum("btn,btsdn,bsn,bsd->btd", C, weight, B, delta * u)
    groups = y.unflatten(-1, (-1, group))
    y = (groups / (groups.square().mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(2)
    return x + _linear(w, "mixer.out_proj", (y + w["mixer.D"] * u) * _silu(z))


def _turned_products(q: Tensor, k: Tensor, freq: Tensor, rope_scale: float) -> Tensor:
    """Re(q_t · conj(k_s) · e^{iθ(t-s)}) summed over pairs of channels taken as complex numbers, (b, h, t, s)."""
    q, k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k))
    angle = _distance(q.shape[1])[..., None, None] / rope_scale * freq
    return torch.einsum("bthk,bshk,tshk->bhts", q, k.conj(), torch.polar(torch.ones_like(angle), angle)).real


def _turn_states(x: Tensor, angle: Tensor) -> Tensor:
    """Pairs of states, each by its own angle (l, n)."""
    turned = []
    for k in range(0, x.shape[-1], 2):
        turned.append(x[..., k] * angle[:, k].cos() - x[..., k + 1] * angle[:, k].sin())
        turned.append(x[..., k + 1] * angle[:, k + 1].cos() + x[..., k] * angle[:, k + 1].sin())
    return torch.stack(turned, dim=-1)


def _distance(length: int) -> Tensor:
    """t - s, (t, s)."""
    position = torch.arange(length, dtype=torch.float64)
    return position[:, None] - position


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def _layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rms_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))

"""The learned bandpass filters of a backbone: decay λ and phase θ, from a state dict.

A filter keeps e^{λd} e^{iθd} of what lies d tokens back. Its passband is centred on θ radians a token; half the power
is left at θ ± |λ|, so that it is 2 |λ| wide; the paper gives its response as |H(ω)| = 1/|λ| · 1/sqrt(1 + ((ω - θ)/λ)²)
(arXiv 2406.04342).

In De-focus ViT and RetNet a head has one λ and a θ for each pair of its channels. In De-focus Mamba λ = A Δ hangs on
the data through the step Δ = softplus(what a token gives + bias) / delta_scale: the step of the bias alone stands for
the typical one. A channel has a λ for each state, and all channels share the states' θ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.checkpoints import describe_backbone
from backbones.defocus import FAMILIES
from backbones.mixers.sizes import resolve_arch


@dataclass(frozen=True)
class LayerFilters:
    """The filters of one block: a bank of f each for h heads, or channels of Mamba.

    Attributes:
        name: Of the block.
        decay: λ ≤ 0, in 1 / token, `(h, f)`, float64.
        phase: θ, in radians / token, `(h, f)`, float64.
    """

    name: str
    decay: np.ndarray
    phase: np.ndarray

    def response(self, omega: np.ndarray) -> np.ndarray:
        """|H(ω)| of each filter, `(h, f, w)`, at frequencies `(w,)` in radians / token; infinite at θ where λ is 0."""
        with np.errstate(divide="ignore"):
            return 1 / np.hypot(self.decay[..., None], omega - self.phase[..., None])

    def passband(self, omega: np.ndarray) -> np.ndarray:
        """What a bank passes at ω, `(h, w)`: the root mean square of |λ H(ω)|, which is 1 at each filter's peak."""
        distance = np.hypot(self.decay[..., None], omega - self.phase[..., None])
        peak = np.broadcast_to(np.abs(self.decay)[..., None], distance.shape)
        gain = np.divide(peak, distance, out=np.ones_like(distance), where=distance > 0)
        return np.sqrt(np.mean(gain**2, axis=1))

    @property
    def width(self) -> np.ndarray:
        """Width of each passband at half power, 2 |λ|, in radians / token, `(h, f)`."""
        return 2 * np.abs(self.decay)

    @property
    def half_life(self) -> np.ndarray:
        """Tokens after which half is left, log 2 / |λ|, `(h, f)`; infinite without decay."""
        with np.errstate(divide="ignore"):
            return np.log(2) / np.abs(self.decay)


def learned_filters(
    weights: Mapping[str, Tensor], rope_scale: float = 1.0, delta_scale: float = 1.0
) -> list[LayerFilters]:
    """The filters in a backbone's weights, block by block.

    Args:
        weights: As of `backbone_from_checkpoint`.
        rope_scale: As of the backbone; divides θ.
        delta_scale: As of the backbone; divides λ.

    Raises:
        ValueError: There is neither decay nor phase in them.
    """
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    found = []
    for index in range(depth):
        decay, phase = _decay_and_phase(weights, f"blocks.{index}.mixer.")
        if decay is None and phase is None:
            raise ValueError(
                f"blocks.{index} has neither decay nor phase, so nothing to show: a network with decay='none' and "
                "phase='none', or another mixer"
            )
        # What is absent does nothing: λ = 0, θ = 0.
        rows = 1 if phase is None else len(phase)
        decays = torch.zeros(rows, 1) if decay is None else decay / delta_scale
        phases = torch.zeros(1, 1) if phase is None else phase / rope_scale
        banks = torch.broadcast_tensors(decays, phases)
        found.append(LayerFilters(f"blocks.{index}", *(bank.double().cpu().numpy() for bank in banks)))
    return found


def initial_filters(
    weights: Mapping[str, Tensor], rope_scale: float = 1.0, delta_scale: float = 1.0
) -> list[LayerFilters] | None:
    """What `learned_filters` were before training; None for weights whose family and sizes are not told by them."""
    family, sizes = describe_backbone({name: tuple(value.shape) for name, value in weights.items()})
    if not family:
        return None
    block = FAMILIES[family].block
    if "inner_dims" in sizes:
        # Which channels share a norm is not told, and no filter hangs on it.
        sizes["norm_group_dims"] = sizes["inner_dims"]
    fresh = block(resolve_arch(sizes, block.archs)).state_dict()
    every = {f"blocks.{i}.{name}": value for i in range(int(sizes["depth"])) for name, value in fresh.items()}
    return learned_filters(every, rope_scale, delta_scale)


def _decay_and_phase(weights: Mapping[str, Tensor], mixer: str) -> tuple[Tensor | None, Tensor | None]:
    """λ as `(h, f)` or `(h, 1)`, θ as `(h, f)` or `(1, f)`, each None where it is not among the weights."""
    work = {
        name.removeprefix(mixer): value.detach().double() for name, value in weights.items() if name.startswith(mixer)
    }
    if "dt_proj.bias" in work:
        states = work.get("freq")
        # Every channel has a step of its own, without decay too.
        step = F.softplus(work["dt_proj.bias"])[:, None]
        decay = -work["A_log"].exp() * step if "A_log" in work else None
        if decay is None and states is not None:
            decay = torch.zeros_like(step)
        return decay, None if states is None else states[None]
    rate = work.get("bandpass.log_rate")
    return None if rate is None else -rate.exp()[:, None], work.get("bandpass.freq")

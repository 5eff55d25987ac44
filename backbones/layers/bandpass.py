"""The learnable bandpass filter of a head: decay λ and phase θ, with their initial values."""

import math

import torch
from torch import Tensor, nn

# What can become of a filter's decay and of its phase. "learned" is De-focus; the others are what the paper compares it
# with.
CHOICES = ("learned", "fixed", "none")


def initial_log_rate(heads: int) -> Tensor:
    """λ̂ `(heads,)` with λ = -exp(λ̂) such that half-lives spread as RetNet's (arXiv 2307.08621).

    e^λ runs from 1 - 1/32 to 1 - 1/512 in even steps of log(1 - e^λ): half-lives from 22 to 355 tokens.
    """
    rate = torch.exp(torch.linspace(math.log(1 / 32), math.log(1 / 512), heads))
    return torch.log(-torch.log1p(-rate))


def initial_freq(heads: int, head_dims: int) -> Tensor:
    """θ `(heads, head_dims / 2)`, radians per position, of rotary embeddings (arXiv 2104.09864): 10000^(-2i/k)."""
    return (10000.0 ** (-torch.arange(0, head_dims, 2) / head_dims)).repeat(heads, 1)


def set_filter(module: nn.Module, argument: str, choice: str, name: str, values: Tensor, absent: float) -> None:
    """Makes one half of a filter, its decay or its phase, an attribute of ``module``.

    Args:
        module: The mixer, or what keeps its filters.
        argument: What the user calls this half, for the message.
        choice: "learned" for a parameter; "fixed" for a buffer of the same name in the state dict, which stays at its
            initial values, or those of a checkpoint; "none" for a network without it, in whose state dict it is not.
        name: Of the attribute.
        values: The initial values.
        absent: The value that does nothing.

    Raises:
        ValueError: Another ``choice``.
    """
    if choice not in CHOICES:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, CHOICES))}, got {choice!r}")
    if choice == "learned":
        module.register_parameter(name, nn.Parameter(values))
    elif choice == "fixed":
        module.register_buffer(name, values)
    else:
        module.register_buffer(name, torch.full_like(values, absent), persistent=False)


class Bandpass(nn.Module):
    """λ and θ of each head.

    Args:
        heads: Number of heads.
        head_dims: Channels of a query or key, even.
        decay: What becomes of λ: "learned", "fixed" at its initial values, or "none" (λ = 0).
        phase: The same of θ.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    log_rate: Tensor
    freq: Tensor

    def __init__(self, heads: int, head_dims: int, decay: str = "learned", phase: str = "learned"):
        super().__init__()
        set_filter(self, "decay", decay, "log_rate", initial_log_rate(heads), absent=-math.inf)
        set_filter(self, "phase", phase, "freq", initial_freq(heads, head_dims), absent=0.0)

    def forward(self) -> tuple[Tensor, Tensor]:
        """λ `(heads,)` and θ `(heads, head_dims / 2)`, at least fp32."""
        work = torch.promote_types(self.log_rate.dtype, torch.float32)
        return -torch.exp(self.log_rate.to(work)), self.freq.to(work)

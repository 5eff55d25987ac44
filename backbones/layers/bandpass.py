"""The learnable bandpass filter of a head: decay λ and phase θ, with their initial values."""

import math

import torch
from torch import Tensor, nn


def initial_log_rate(heads: int) -> Tensor:
    """λ̂ `(heads,)` with λ = -exp(λ̂) such that half-lives spread as RetNet's (arXiv 2307.08621).

    e^λ runs from 1 - 1/32 to 1 - 1/512 in even steps of log(1 - e^λ): half-lives from 22 to 355 tokens.
    """
    rate = torch.exp(torch.linspace(math.log(1 / 32), math.log(1 / 512), heads))
    return torch.log(-torch.log1p(-rate))


def initial_freq(heads: int, head_dims: int) -> Tensor:
    """θ `(heads, head_dims / 2)`, radians per position, of rotary embeddings (arXiv 2104.09864): 10000^(-2i/k)."""
    return (10000.0 ** (-torch.arange(0, head_dims, 2) / head_dims)).repeat(heads, 1)


class Bandpass(nn.Module):
    """λ and θ of each head.

    Args:
        heads: Number of heads.
        head_dims: Channels of a query or key, even.
    """

    def __init__(self, heads: int, head_dims: int):
        super().__init__()
        self.log_rate = nn.Parameter(initial_log_rate(heads))
        self.freq = nn.Parameter(initial_freq(heads, head_dims))

    def forward(self) -> tuple[Tensor, Tensor]:
        """λ `(heads,)` and θ `(heads, head_dims / 2)`, at least fp32."""
        work = torch.promote_types(self.log_rate.dtype, torch.float32)
        return -torch.exp(self.log_rate.to(work)), self.freq.to(work)

"""Stochastic depth (arXiv 1603.09382)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, zeroes whole samples with probability ``drop_prob`` and scales the others to keep the mean.

    Args:
        drop_prob: In [0, 1).

    Raises:
        ValueError: ``drop_prob`` outside [0, 1).
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"drop_prob must be in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """`(b, ...)` to the same shape and dtype; in evaluation ``x`` itself."""
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        mask = torch.rand(x.shape[0], *(1,) * (x.ndim - 1), device=x.device) < keep
        # where() instead of a product: a sample that is dropped stays finite even if its branch is not.
        return torch.where(mask, x / keep, torch.zeros((), dtype=x.dtype, device=x.device))

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"{self.drop_prob:.3f}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """The rates of ``depth`` blocks, rising linearly from 0 to ``rate``."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]

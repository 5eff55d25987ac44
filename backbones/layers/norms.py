"""Normalisations, all computed in at least fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x · rsqrt(mean(x²) + eps) · weight over the last dimension.

    The mean is taken in fp32; the result has the dtype of the weight, so that an fp32 residual stream feeds the
    layers of a 16-bit model.

    Args:
        dims: Size of the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, dims: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dims)` to the same shape, in the dtype of the weight."""
        work = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(work), self.weight.shape, self.weight.to(work), self.eps).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"{self.weight.numel()}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` computed in fp32, the result in the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., *normalized_shape)` to the same shape, in the dtype of the weight."""
        work = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(work), self.bias.to(work)
        return F.layer_norm(x.to(work), self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class LayerNorm2d(nn.LayerNorm):
    """Normalises a `(b, c, h, w)` map over its channels; the result has the dtype of the map and is contiguous.

    Args:
        channels: c.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, channels, h, w)` to the same."""
        # Contiguous because mmcv's RoIAlign takes any map to lie in memory channel by channel, and reads nonsense else.
        return super().forward(x.permute(0, 2, 3, 1)).to(x.dtype).permute(0, 3, 1, 2).contiguous()

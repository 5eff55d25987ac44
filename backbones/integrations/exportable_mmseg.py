"""Whole segmentors of mmseg to export: image to the logits of each pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.export import Exportable


class _Segmentor(nn.Module):
    """A segmentor on the whole image at once."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        _replace_pools(self)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model.decode_head(self.model.extract_feat(images))
        return F.interpolate(
            logits, images.shape[2:], mode="bilinear", align_corners=self.model.decode_head.align_corners
        )


class AveragePool(nn.Module):
    """`torch.nn.AdaptiveAvgPool2d` by matrix products, which ONNX has for all sizes; it has none but 1 × 1.

    Args:
        rows: Of the output.
        columns: Of the output.
    """

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """`(b, c, h, w)` to `(b, c, rows, columns)`."""
        return _shares(self.rows, x.shape[-2], x) @ x @ _shares(self.columns, x.shape[-1], x).mT


def _shares(bins: int, side: int, like: Tensor) -> Tensor:
    """What each pixel of a side counts in each bin, `(bins, side)`."""
    i = torch.arange(bins, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)
    first = torch.div(i * side, bins, rounding_mode="floor")
    end = torch.div((i + 1) * side + bins - 1, bins, rounding_mode="floor")
    inside = (pixel >= first) & (pixel < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)


def _replace_pools(model: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                setattr(parent, name, AveragePool(*(size if isinstance(size, tuple) else (size, size))))


def whole_segmentor(model: nn.Module, **common) -> Exportable:
    """A segmentor with its head.

    Args:
        model: An `EncoderDecoder` of mmseg, which is changed: its pools become `AveragePool`.
        **common: Further fields of `Exportable`.
    """
    details = {"logits": "of each class at each pixel of the image; its argmax is the label"}
    return Exportable(_Segmentor(model).eval(), ("logits",), details=details, **common)

"""Retention through the kernels of flash-linear-attention, where that package is installed."""

from torch import Tensor

from backbones.ops.dispatch import import_refusal
from backbones.ops.rotary import rotate_pairs


def refusal(device_type: str) -> str | None:
    """None where the package's kernels run, else the reason."""
    if device_type != "cuda":
        return "flash-linear-attention's kernels need CUDA"
    return import_refusal("fla.ops.simple_gla", "pip install flash-linear-attention")


def fla_retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor, rope_scale: float, delta_scale: float
) -> Tensor:
    """See `retention`."""
    from fla.ops.simple_gla import chunk_simple_gla

    q, k = rotate_pairs(q, freq, rope_scale), rotate_pairs(k, freq, rope_scale)
    # Their gate is one value per token and head; a constant one gives the gradient of λ by summing.
    gate = (decay.float() / delta_scale).expand(*q.shape[:3]).contiguous()
    return chunk_simple_gla(q.contiguous(), k.contiguous(), v.contiguous(), g=gate, scale=1.0)[0]

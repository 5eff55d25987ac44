"""De-focus ViT: softmax attention whose logits pass a learnable bandpass filter (arXiv 2406.04342, eq. 8)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from backbones.layers.bandpass import Bandpass
from backbones.layers.drop_path import DropPath
from backbones.layers.norms import LayerNorm
from backbones.ops import decay_attention


@dataclass(frozen=True)
class ViTArch:
    """Sizes of a De-focus ViT.

    Attributes:
        embed_dims: Width of the residual stream.
        depth: Number of blocks.
        num_heads: Heads of attention; divides ``embed_dims`` into heads of even width.
        mlp_ratio: Width of the MLP over ``embed_dims``.

    Raises:
        ValueError: A size is no positive integer, the ratio not positive, or the heads do not divide the width.
    """

    embed_dims: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self):
        for name in ("embed_dims", "depth", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.embed_dims % (2 * self.num_heads):
            raise ValueError(
                f"embed_dims={self.embed_dims} cannot be cut into {self.num_heads} heads of even width: choose a "
                "multiple of 2 * num_heads"
            )
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")


class ViTMixer(nn.Module):
    """Multi-head De-focus attention.

    Args:
        arch: The sizes.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        causal: Whether a token sees itself and earlier ones only.
        decay: "learned", "fixed", or "none": as of `Bandpass`.
        phase: The same.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    def __init__(
        self,
        arch: ViTArch,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        causal: bool = True,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        self.arch = arch
        self.rope_scale = rope_scale
        self.delta_scale = delta_scale
        self.causal = causal
        self.qkv = nn.Linear(arch.embed_dims, 3 * arch.embed_dims)
        self.bandpass = Bandpass(arch.num_heads, arch.embed_dims // arch.num_heads, decay, phase)
        self.proj = nn.Linear(arch.embed_dims, arch.embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(b, l, embed_dims)` along l."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.arch.num_heads, -1)).unbind(2)
        decay, freq = self.bandpass()
        y = decay_attention(
            q, k, v, decay, freq, rope_scale=self.rope_scale, delta_scale=self.delta_scale, causal=self.causal
        )
        return self.proj(y.flatten(2))


class ViTBlock(nn.Module):
    """x + drop_path(mixer(norm1(x))), then x + drop_path(mlp(norm2(x))), the sums in the dtype of x: fp32.

    Args:
        arch: The sizes.
        drop_path: Probability that a sample skips a branch in training.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        causal: Whether a token sees itself and earlier ones only.
        decay: "learned" as published, "fixed" at the initial values, or "none": softmax attention's own logits.
        phase: "learned" as published, "fixed" at the initial values (the rotary embedding of arXiv 2104.09864), or
            "none": without positions but what the causal order gives.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    archs: ClassVar = {
        "small": ViTArch(embed_dims=384, depth=12, num_heads=6),
        "base": ViTArch(embed_dims=768, depth=12, num_heads=12),
    }
    undecayed = ("log_rate", "freq")

    def __init__(
        self,
        arch: ViTArch,
        drop_path: float = 0.0,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        causal: bool = True,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        hidden = int(arch.embed_dims * arch.mlp_ratio)
        self.norm1 = LayerNorm(arch.embed_dims, eps=1e-6)
        self.mixer = ViTMixer(arch, rope_scale, delta_scale, causal, decay, phase)
        self.norm2 = LayerNorm(arch.embed_dims, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(arch.embed_dims, hidden), nn.GELU(), nn.Linear(hidden, arch.embed_dims))
        self.drop_path = DropPath(drop_path)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights truncated normal 0.02, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, embed_dims)` to the same."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

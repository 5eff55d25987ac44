"""De-focus RetNet: retention with a learnable bandpass filter per head (arXiv 2406.04342, eq. 4)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.layers.bandpass import Bandpass
from backbones.layers.drop_path import DropPath
from backbones.layers.norms import RMSNorm
from backbones.ops import retention


@dataclass(frozen=True)
class RetNetArch:
    """Sizes of a De-focus RetNet.

    Attributes:
        embed_dims: Width of the residual stream, of queries and of keys.
        depth: Number of blocks.
        num_heads: Heads of retention; divides ``embed_dims`` into heads of even width, and ``value_dims``.
        value_dims: Width of the values and of the gate.
        ffn_dims: Width of the gated feed-forward network.

    Raises:
        ValueError: A size is no positive integer, or the heads do not divide the widths.
    """

    embed_dims: int
    depth: int
    num_heads: int
    value_dims: int
    ffn_dims: int

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.embed_dims % (2 * self.num_heads) or self.value_dims % self.num_heads:
            raise ValueError(
                f"embed_dims={self.embed_dims} must be a multiple of 2 * num_heads and value_dims={self.value_dims} "
                f"of num_heads={self.num_heads}"
            )


class RetNetMixer(nn.Module):
    """Multi-head De-focus retention, normalised per head and gated by SiLU ("swish").

    Args:
        arch: The sizes.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        decay: "learned", "fixed", or "none": as of `Bandpass`.
        phase: The same.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    def __init__(
        self,
        arch: RetNetArch,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        self.arch = arch
        self.rope_scale = rope_scale
        self.delta_scale = delta_scale
        self.q_proj = nn.Linear(arch.embed_dims, arch.embed_dims, bias=False)
        self.k_proj = nn.Linear(arch.embed_dims, arch.embed_dims, bias=False)
        self.v_proj = nn.Linear(arch.embed_dims, arch.value_dims, bias=False)
        self.gate_proj = nn.Linear(arch.embed_dims, arch.value_dims, bias=False)
        self.bandpass = Bandpass(arch.num_heads, arch.embed_dims // arch.num_heads, decay, phase)
        self.out_proj = nn.Linear(arch.value_dims, arch.embed_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(b, l, embed_dims)` along l, causally."""
        heads = self.arch.num_heads
        q, k, v = (proj(x).unflatten(-1, (heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        decay, freq = self.bandpass()
        # The norm takes the scale out again; it keeps sums over thousands of tokens within 16-bit floats.
        y = retention(
            q,
            k * k.shape[-1] ** -0.5,
            v,
            decay,
            freq,
            rope_scale=self.rope_scale,
            delta_scale=self.delta_scale,
        )
        work = torch.promote_types(y.dtype, torch.float32)
        y = F.layer_norm(y.to(work), y.shape[-1:], eps=1e-6).to(y.dtype).flatten(2)
        return self.out_proj(y * F.silu(self.gate_proj(x)))


class GatedFFN(nn.Module):
    """down(SiLU(gate(x)) · up(x)), without biases (arXiv 2002.05202).

    Args:
        dims: Width of input and output.
        hidden_dims: Width in between.
    """

    def __init__(self, dims: int, hidden_dims: int):
        super().__init__()
        self.gate = nn.Linear(dims, hidden_dims, bias=False)
        self.up = nn.Linear(dims, hidden_dims, bias=False)
        self.down = nn.Linear(hidden_dims, dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dims)` to the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class RetNetBlock(nn.Module):
    """x + drop_path(mixer(norm1(x))), then x + drop_path(ffn(norm2(x))), the sums in the dtype of x: fp32.

    Args:
        arch: The sizes.
        drop_path: Probability that a sample skips a branch in training.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        decay: "learned" as published, "fixed" at the initial values, or "none": every token counts as the last one.
        phase: "learned" as published, "fixed" at the initial values, or "none": without positions. RetNet itself
            (arXiv 2307.08621) has both fixed.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    archs: ClassVar = {"base": RetNetArch(embed_dims=768, depth=12, num_heads=12, value_dims=1536, ffn_dims=1280)}
    undecayed = ("log_rate", "freq")

    def __init__(
        self,
        arch: RetNetArch,
        drop_path: float = 0.0,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        self.norm1 = RMSNorm(arch.embed_dims)
        self.mixer = RetNetMixer(arch, rope_scale, delta_scale, decay, phase)
        self.norm2 = RMSNorm(arch.embed_dims)
        self.ffn = GatedFFN(arch.embed_dims, arch.ffn_dims)
        self.drop_path = DropPath(drop_path)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, embed_dims)` to the same."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))

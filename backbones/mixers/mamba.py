"""De-focus Mamba: a selective scan whose states are learnable bandpass filters (arXiv 2406.04342, eq. 9)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones.layers.bandpass import set_filter
from backbones.layers.drop_path import DropPath
from backbones.layers.norms import RMSNorm
from backbones.ops.mamba_inner import mamba_inner, mamba_inner_by_calls


@dataclass(frozen=True)
class MambaArch:
    """Sizes of a De-focus Mamba.

    Attributes:
        embed_dims: Width of the residual stream.
        inner_dims: Channels of the scan.
        depth: Number of blocks.
        dt_rank: Rank of the projection that gives the step sizes.
        state_dims: States of one channel, even.
        conv_kernel: Taps of the causal convolution.
        norm_group_dims: Scan channels that share one root mean square; divides ``inner_dims``.

    Raises:
        ValueError: A size is no positive integer, the states are odd, or the groups do not divide the channels.
    """

    embed_dims: int
    inner_dims: int
    depth: int
    dt_rank: int = 48
    state_dims: int = 16
    conv_kernel: int = 4
    norm_group_dims: int = 64

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.inner_dims % self.norm_group_dims:
            raise ValueError(
                f"inner_dims={self.inner_dims} (embed_dims={self.embed_dims}) cannot be cut into norm groups of "
                f"{self.norm_group_dims} channels: choose a multiple of norm_group_dims, or another norm_group_dims"
            )
        if self.state_dims % 2:
            raise ValueError(f"the phase turns pairs of states, so state_dims must be even, got {self.state_dims}")


class MambaMixer(nn.Module):
    """Projections, causal convolution, De-focus scan, gate.

    Args:
        arch: The sizes.
        rope_scale: Divides the position before the phase.
        delta_scale: Divides the step sizes.
        decay: What becomes of A: "learned", "fixed" at its initial values, or "none" (A = 0).
        phase: What becomes of θ: "learned", "fixed" at its initial values, or "none" (θ = 0).

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    A_log: Tensor
    freq: Tensor

    def __init__(
        self,
        arch: MambaArch,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        inner, states = arch.inner_dims, arch.state_dims
        self.arch = arch
        self.rope_scale = rope_scale
        self.delta_scale = delta_scale
        self.in_proj = nn.Linear(arch.embed_dims, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, arch.conv_kernel, groups=inner)
        self.x_proj = nn.Linear(inner, arch.dt_rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(arch.dt_rank, inner)
        n = torch.arange(1, states + 1, dtype=torch.float32)
        set_filter(self, "decay", decay, "A_log", n.log().repeat(inner, 1), absent=-math.inf)
        self.D = nn.Parameter(torch.empty(inner))
        freq = (100.0 ** (-n / states) - 0.01) / (1 - 0.01)
        set_filter(self, "phase", phase, "freq", freq, absent=0.0)
        self.out_proj = nn.Linear(inner, arch.embed_dims, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the published initial values, but for those of the filters, which are made with them."""
        rank = self.arch.dt_rank
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        # Depthwise: each output channel sees as many inputs as there are taps.
        nn.init.normal_(self.conv1d.weight, std=math.sqrt(2.0 / self.arch.conv_kernel))
        assert self.conv1d.bias is not None
        nn.init.zeros_(self.conv1d.bias)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        step = torch.linspace(math.log(1e-3), math.log(1e-1), self.arch.inner_dims).exp().clamp_min(1e-4)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(b, l, embed_dims)` along l, causally."""
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        sizes: dict[str, Any] = dict(
            rope_scale=self.rope_scale, delta_scale=self.delta_scale, norm_group_dims=self.arch.norm_group_dims
        )
        assert self.conv1d.bias is not None
        xz, convolution = self.in_proj(x), (self.conv1d.weight, self.conv1d.bias)
        if _is_plain(self.x_proj) and _is_plain(self.dt_proj):
            steps = (self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias)
            return self.out_proj(mamba_inner(xz, *convolution, *steps, A, self.D, self.freq, **sizes))
        # LoRA, quantization and hooks want to be called; the projection then adds its bias itself.
        no_bias = torch.zeros_like(self.D)
        return self.out_proj(
            mamba_inner_by_calls(xz, *convolution, self.x_proj, self.dt_proj, no_bias, A, self.D, self.freq, **sizes)
        )


def _is_plain(linear: nn.Module) -> bool:
    """Whether a projection is its weight and bias alone, so that nobody misses that it is not called."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return type(linear) is nn.Linear and not any(hooks)


class MambaBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), the sum in the dtype of x: fp32.

    Args:
        arch: The sizes.
        drop_path: Probability that a sample skips the block in training.
        rope_scale: Divides the position before the phase.
        delta_scale: Divides the step sizes.
        decay: "learned" as published, "fixed" at the initial values, or "none": a state forgets nothing.
        phase: "learned" as published, "fixed" at the initial values, or "none": the recurrence of Mamba itself
            (arXiv 2312.00752), still with the norm of De-focus Mamba on what leaves it.

    Raises:
        ValueError: Another ``decay`` or ``phase``.
    """

    archs: ClassVar = {
        "small": MambaArch(embed_dims=384, inner_dims=768, depth=24),
        "base": MambaArch(embed_dims=768, inner_dims=1536, depth=24),
        "large": MambaArch(embed_dims=1024, inner_dims=2048, depth=48),
    }
    undecayed = ("A_log", "D", "freq")

    def __init__(
        self,
        arch: MambaArch,
        drop_path: float = 0.0,
        rope_scale: float = 1.0,
        delta_scale: float = 1.0,
        decay: str = "learned",
        phase: str = "learned",
    ):
        super().__init__()
        self.norm = RMSNorm(arch.embed_dims)
        self.mixer = MambaMixer(arch, rope_scale, delta_scale, decay, phase)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, embed_dims)` to the same."""
        return x + self.drop_path(self.mixer(self.norm(x)))

"""The operations, each with its naive definition, its backends and one public function."""

from backbones.ops.causal_conv1d import causal_conv1d_silu
from backbones.ops.decay_attention import decay_attention
from backbones.ops.deformable_attention import deformable_attention
from backbones.ops.mamba_inner import mamba_inner
from backbones.ops.retention import retention
from backbones.ops.selective_scan import defocus_scan

__all__ = ["causal_conv1d_silu", "decay_attention", "defocus_scan", "deformable_attention", "mamba_inner", "retention"]

"""Operations on sequences, each with its naive definition, its backends and one public function."""

from backbones.ops.causal_conv1d import causal_conv1d_silu
from backbones.ops.selective_scan import defocus_scan

__all__ = ["causal_conv1d_silu", "defocus_scan"]

"""Causal depthwise convolution over the sequence, followed by SiLU."""

from torch import Tensor

from backbones.ops import cpu_extension
from backbones.ops.causal_conv1d.cpu import cpu_causal_conv1d_silu
from backbones.ops.causal_conv1d.exported import exported_causal_conv1d_silu
from backbones.ops.causal_conv1d.naive import naive_causal_conv1d_silu
from backbones.ops.causal_conv1d.triton_backend import triton_causal_conv1d_silu
from backbones.ops.dispatch import Backend, Operation, check_devices, serves_every_device, triton_refusal
from backbones.ops.selective_scan.mamba_ssm_backend import mamba_ssm_causal_conv1d_silu
from backbones.ops.selective_scan.mamba_ssm_backend import may_differ as mamba_ssm_may_differ
from backbones.ops.selective_scan.mamba_ssm_backend import refusal as mamba_ssm_refusal

CAUSAL_CONV1D = Operation(
    "causal_conv1d_silu",
    (
        Backend("cpu", cpu_causal_conv1d_silu, cpu_extension.refusal),
        Backend("triton", triton_causal_conv1d_silu, triton_refusal),
        Backend("torch", naive_causal_conv1d_silu, serves_every_device),
        Backend("reference", naive_causal_conv1d_silu, serves_every_device, automatic=False),
        Backend("export", exported_causal_conv1d_silu, serves_every_device, automatic=False),
        Backend(
            "mamba_ssm",
            mamba_ssm_causal_conv1d_silu,
            mamba_ssm_refusal,
            automatic=False,
            may_differ=mamba_ssm_may_differ,
        ),
    ),
    environment="DEFOCUS_SCAN_BACKEND",
)


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """out_t = SiLU(bias + Σ_j weight_j x_{t-k+1+j}), tokens before the first being zero.

    Args:
        x: `(b, l, d)`.
        weight: `(d, 1, k)`, as `torch.nn.Conv1d` keeps it.
        bias: `(d,)`.
        backend: A name to force a backend; None chooses by device, see `backbones.ops.dispatch`.

    Returns:
        `(b, l, d)` in the dtype of ``x``.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    if x.ndim != 3 or weight.shape[:2] != (x.shape[2], 1) or bias.shape != (x.shape[2],):
        raise ValueError(
            "needs x (b, l, d), weight (d, 1, k) and bias (d,), got "
            f"{tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    check_devices(x=x, weight=weight, bias=bias)
    return CAUSAL_CONV1D.run(backend, x, weight.to(x.dtype), bias.to(x.dtype))

"""The `mamba_ssm` backend: kernels of the installed packages mamba_ssm and causal_conv1d, the rest in PyTorch.

What their scan does not know (the phase, the norm, the skip and gate behind it) is done by plain passes over
memory, as in the released code, which makes this the backend to compare the speed of the others with.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.causal_conv1d.naive import naive_causal_conv1d_silu
from backbones.ops.dispatch import import_refusal
from backbones.ops.selective_scan.naive import group_rms_norm, rotate_states


def refusal(device_type: str) -> str | None:
    """Why the kernels of mamba_ssm cannot serve ``device_type``, or None."""
    if device_type != "cuda":
        return "the kernels of mamba_ssm need CUDA"
    reason = import_refusal("mamba_ssm.ops.selective_scan_interface", "pip install mamba-ssm")
    # Newer releases of the package come without the scan that is meant here, unless they are told to build it.
    build = "build mamba-ssm from its source with MAMBA_KEEP_CUDA_BUILD=TRUE"
    return reason or import_refusal("selective_scan_cuda", build)


def may_differ(device_type: str) -> str | None:
    """Why two runs may give different bits."""
    return "the kernels of mamba_ssm and causal_conv1d add gradients atomically"


def mamba_ssm_defocus_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    freq: Tensor,
    dt_bias: Tensor,
    rope_scale: float,
    delta_scale: float,
    norm_group_dims: int,
    handed: torch.dtype = torch.float32,
) -> Tensor:
    """See `defocus_scan`. Differentiated by their gradient of the scan and by autograd.

    ``handed`` is the dtype that their scan gets its sequences in: 16 bits as in the released code under autocast.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    out_dtype = u.dtype
    u, dt, z, A, D, freq, dt_bias = (x.float() for x in (u, dt, z, A, D, freq, dt_bias))
    delta = F.softplus(dt + dt_bias) / delta_scale
    B, C = (rotate_states(x, freq, rope_scale) for x in (B, C))
    # Their layout is (b, d, l) for sequences and (b, groups, n, l) for B and C.
    u_, delta, B, C = (x.to(handed).transpose(1, 2).contiguous() for x in (u, delta, B, C))
    y = selective_scan_fn(u_, delta, A.contiguous(), B[:, None], C[:, None]).transpose(1, 2).float()
    y = group_rms_norm(y, norm_group_dims) + D * u
    return (y * F.silu(z)).to(out_dtype)


def mamba_ssm_causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `causal_conv1d_silu`: by causal_conv1d where that is installed beside mamba_ssm, else by PyTorch.

    So are numbers of channels that its kernel does not take.
    """
    if x.shape[-1] % 8 or import_refusal("causal_conv1d", "pip install causal-conv1d") is not None:
        return naive_causal_conv1d_silu(x, weight, bias)
    from causal_conv1d import causal_conv1d_fn

    # Channels last in memory is a layout that their kernel takes as it is.
    return causal_conv1d_fn(x.transpose(1, 2), weight[:, 0], bias, activation="silu").transpose(1, 2)

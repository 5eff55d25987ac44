"""The De-focus selective scan: one fused operation, several backends."""

from torch import Tensor

from backbones.ops import cpu_extension
from backbones.ops.dispatch import Backend, Operation, check_devices, serves_every_device, triton_refusal
from backbones.ops.selective_scan.chunked import chunked_defocus_scan
from backbones.ops.selective_scan.cpu import cpu_defocus_scan
from backbones.ops.selective_scan.exported import exported_defocus_scan
from backbones.ops.selective_scan.mamba_ssm_backend import mamba_ssm_defocus_scan
from backbones.ops.selective_scan.mamba_ssm_backend import may_differ as mamba_ssm_may_differ
from backbones.ops.selective_scan.mamba_ssm_backend import refusal as mamba_ssm_refusal
from backbones.ops.selective_scan.naive import naive_defocus_scan
from backbones.ops.selective_scan.triton_backend import triton_defocus_scan

DEFOCUS_SCAN = Operation(
    "defocus_scan",
    (
        Backend("cpu", cpu_defocus_scan, cpu_extension.refusal),
        Backend("triton", triton_defocus_scan, triton_refusal),
        Backend("torch", chunked_defocus_scan, serves_every_device),
        Backend("reference", naive_defocus_scan, serves_every_device, automatic=False),
        Backend("export", exported_defocus_scan, serves_every_device, automatic=False),
        Backend(
            "mamba_ssm", mamba_ssm_defocus_scan, mamba_ssm_refusal, automatic=False, may_differ=mamba_ssm_may_differ
        ),
    ),
    environment="DEFOCUS_SCAN_BACKEND",
)


def defocus_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    freq: Tensor,
    dt_bias: Tensor,
    *,
    rope_scale: float = 1.0,
    delta_scale: float = 1.0,
    norm_group_dims: int = 64,
    backend: str | None = None,
) -> Tensor:
    """Phase, selective scan, group RMS norm, skip and gate of a De-focus Mamba block (eq. 9, steps 3 to 6).

    With Δ = softplus(``dt`` + ``dt_bias``) / ``delta_scale`` and B, C turned by the phase of their position::

        h_t = exp(Δ_t A) h_{t-1} + Δ_t u_t B_t        y_t = Σ_n C_{t,n} h_{t,n}
        out = (groupnorm(y) + D u) · SiLU(z)

    The state, the positions, the angles, Δ and the norm are fp32 (float64 on request of a float64 ``u`` in the
    `reference` and `torch` backends) whatever the dtype of the inputs, also under autocast.

    Args:
        u: What is scanned, after the causal convolution and SiLU, `(b, l, d)`.
        dt: Step sizes before bias and softplus, `(b, l, d)`.
        A: Decay rates, negative, `(d, n)`.
        B: Input weights before the phase, `(b, l, n)`, n even.
        C: Output weights before the phase, `(b, l, n)`.
        D: Weight of the skip, `(d,)`.
        z: Gate before SiLU, `(b, l, d)`.
        freq: Phase θ of each state, `(n,)`, radians per position.
        dt_bias: Bias of the step sizes, `(d,)`.
        rope_scale: Divides the position (to carry weights to another resolution).
        delta_scale: Divides Δ (likewise).
        norm_group_dims: Channels that share one root mean square; divides d.
        backend: A name to force a backend; None chooses by device, see `backbones.ops.dispatch`.

    Returns:
        `(b, l, d)` in the dtype of ``u``.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    _check(u, dt, A, B, C, D, z, freq, dt_bias, norm_group_dims)
    scales = (float(rope_scale), float(delta_scale), norm_group_dims)
    return DEFOCUS_SCAN.run(backend, u, dt, A, B, C, D, z, freq, dt_bias, *scales)


def _check(u, dt, A, B, C, D, z, freq, dt_bias, norm_group_dims):
    if u.ndim != 3:
        raise ValueError(f"u must be (b, l, d), got {tuple(u.shape)}")
    b, l, d = u.shape
    n = A.shape[-1]
    expected = dict(
        dt=(dt, (b, l, d)),
        z=(z, (b, l, d)),
        A=(A, (d, n)),
        B=(B, (b, l, n)),
        C=(C, (b, l, n)),
        D=(D, (d,)),
        freq=(freq, (n,)),
        dt_bias=(dt_bias, (d,)),
    )
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} to fit u {(b, l, d)}, got {tuple(tensor.shape)}")
    check_devices(u=u, **{name: tensor for name, (tensor, _) in expected.items()})
    if l == 0:
        raise ValueError("the sequence is empty (l = 0)")
    if n % 2:
        raise ValueError(f"the phase turns pairs of states, so their number must be even, got {n}")
    if d % norm_group_dims:
        raise ValueError(f"norm_group_dims={norm_group_dims} does not divide the {d} channels of u")

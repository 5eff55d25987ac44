"""Retention: linear attention with a learned decay and a learned phase."""

from torch import Tensor

from backbones.ops.decay_attention import check_heads
from backbones.ops.dispatch import Backend, Operation, serves_every_device, triton_refusal
from backbones.ops.retention.chunked import chunked_retention
from backbones.ops.retention.exported import exported_retention
from backbones.ops.retention.naive import naive_retention, recurrent_retention
from backbones.ops.retention.triton_backend import triton_retention

RETENTION = Operation(
    "retention",
    (
        Backend("triton", triton_retention, triton_refusal),
        Backend("torch", chunked_retention, serves_every_device),
        Backend("reference", naive_retention, serves_every_device, automatic=False),
        Backend("recurrent", recurrent_retention, serves_every_device, automatic=False),
        Backend("export", exported_retention, serves_every_device, automatic=False),
    ),
    environment="DEFOCUS_RETENTION_BACKEND",
)


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    *,
    rope_scale: float = 1.0,
    delta_scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """De-focus retention (eq. 4): y_t = Σ_{s≤t} e^{λ_h(t-s)} e^{iθ(t-s)} (q_tᵀ k_s) v_s, without softmax.

    Args:
        q: Queries, `(b, l, h, k)`, k even; scale them as you like, nothing is divided here.
        k: Keys, `(b, l, h, k)`.
        v: Values, `(b, l, h, v)`.
        decay: λ, negative, `(h,)`.
        freq: θ, `(h, k / 2)`, radians per position, one per pair of channels.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        backend: A name to force a backend; None asks `DEFOCUS_RETENTION_BACKEND`, and without it chooses by device.

    Returns:
        `(b, l, h, v)` in the dtype of ``q``.

    Raises:
        ValueError: Shapes that do not fit, inputs on several devices, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    check_heads(q, k, v, decay, freq)
    return RETENTION.run(backend, q, k, v, decay, freq, float(rope_scale), float(delta_scale))

"""De-focus attention: softmax attention whose logits carry a learned decay and a learned phase."""

from torch import Tensor

from backbones.ops import cpu_extension
from backbones.ops.decay_attention.blocked import blocked_decay_attention
from backbones.ops.decay_attention.cpu import cpu_decay_attention
from backbones.ops.decay_attention.exported import exported_decay_attention
from backbones.ops.decay_attention.naive import naive_decay_attention
from backbones.ops.decay_attention.triton_backend import triton_decay_attention
from backbones.ops.dispatch import Backend, Operation, check_devices, serves_every_device, triton_refusal

DECAY_ATTENTION = Operation(
    "decay_attention",
    (
        Backend("cpu", cpu_decay_attention, cpu_extension.refusal),
        Backend("triton", triton_decay_attention, triton_refusal),
        Backend("torch", blocked_decay_attention, serves_every_device),
        Backend("reference", naive_decay_attention, serves_every_device, automatic=False),
        Backend("export", exported_decay_attention, serves_every_device, automatic=False),
    ),
    environment="DEFOCUS_ATTENTION_BACKEND",
)


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    freq: Tensor,
    *,
    rope_scale: float = 1.0,
    delta_scale: float = 1.0,
    causal: bool = True,
    backend: str | None = None,
) -> Tensor:
    """De-focus attention (eq. 8).

    A token's output is::

        y_t = Σ_s softmax_s( e^{λ_h |t-s|} · q_tᵀ e^{iθ(t-s)} k_s / √k ) v_s

    over s ≤ t, or over all s without ``causal``. The decay multiplies the logit, before the softmax: what is far
    gets no say in where to look, but keeps its share of a uniform look.

    Args:
        q: Queries, `(b, l, h, k)`, k even.
        k: Keys, `(b, l, h, k)`.
        v: Values, `(b, l, h, v)`.
        decay: λ, negative, `(h,)`.
        freq: θ, `(h, k / 2)`, radians per position, one per pair of channels.
        rope_scale: Divides the position in the phase.
        delta_scale: Divides the distance in the decay.
        causal: Whether a token sees itself and earlier ones only.
        backend: A name to force a backend; None asks `DEFOCUS_ATTENTION_BACKEND`, and without it chooses by device.

    Returns:
        `(b, l, h, v)` in the dtype of ``q``.

    Raises:
        ValueError: Shapes that do not fit, inputs on several devices, an unknown backend.
        RuntimeError: The named backend cannot run here.
    """
    check_heads(q, k, v, decay, freq)
    return DECAY_ATTENTION.run(backend, q, k, v, decay, freq, float(rope_scale), float(delta_scale), causal)


def check_heads(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, freq: Tensor) -> None:
    """Raises ValueError if shapes or devices do not fit: the checks that attention and retention share."""
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or q.shape[:3] != v.shape[:3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q and k must be (b, l, h, k) and v (b, l, h, v), got {shapes}")
    heads, channels = q.shape[2:]
    if channels % 2:
        raise ValueError(f"the phase turns pairs of channels, so k must be even, got {channels}")
    if decay.shape != (heads,) or freq.shape != (heads, channels // 2):
        raise ValueError(
            f"decay must be {(heads,)} and freq {(heads, channels // 2)} to fit q {tuple(q.shape)}, "
            f"got {tuple(decay.shape)} and {tuple(freq.shape)}"
        )
    check_devices(q=q, k=k, v=v, decay=decay, freq=freq)

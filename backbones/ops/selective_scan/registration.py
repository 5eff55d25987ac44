"""Makes a backend's forward and backward functions one operator that torch.compile and autograd understand."""

from collections.abc import Callable

import torch
from torch import Tensor

from backbones.ops.autograd import differentiable, refuse_second_derivatives


def no_second_derivative(backend: str, operation: str) -> Callable:
    """As of `refuse_second_derivatives`, for the operations whose backend `DEFOCUS_SCAN_BACKEND` names."""
    return refuse_second_derivatives(
        f"backend={backend!r} of {operation} has no second derivative",
        'choose backend="reference" (or DEFOCUS_SCAN_BACKEND=reference), which is plain PyTorch',
    )


def register_scan(name: str, forward: Callable, backward: Callable, chunk: int) -> Callable:
    """Registers ``defocus::scan_<name>`` and its gradient with `torch.library`.

    Args:
        name: Backend name.
        forward: ``(u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims)`` to
            ``(out, states)``: `(b, l, d)` in the dtype of u, and the state before each chunk,
            `(b, ceil(l / chunk), d, n)`, fp32 or float64.
        backward: ``(grad, states, u, ..., norm_group_dims)`` to the nine gradients, each in its input's shape and
            dtype.
        chunk: Tokens between two saved states. At least n / 4 of them, so that what is saved grows with b·l·d.

    Returns:
        A function with the arguments of ``forward`` that gives ``out`` alone.
    """

    @torch.library.custom_op(f"defocus::scan_{name}", mutates_args=())
    def scan(
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
    ) -> tuple[Tensor, Tensor]:
        return forward(u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims)

    @scan.register_fake
    def _(u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims):
        b, l, d = u.shape
        state_dtype = torch.promote_types(u.dtype, torch.float32)
        states = u.new_empty((b, (l + chunk - 1) // chunk, d, A.shape[1]), dtype=state_dtype)
        return u.new_empty(u.shape), states

    @torch.library.custom_op(f"defocus::scan_{name}_backward", mutates_args=())
    def scan_backward(
        grad: Tensor,
        states: Tensor,
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs = (u, dt, A, B, C, D, z, freq, dt_bias)
        grads = backward(grad, states, *inputs, rope_scale, delta_scale, norm_group_dims)
        return tuple(g.to(x.dtype).contiguous() for g, x in zip(grads, inputs, strict=True))

    @scan_backward.register_fake
    def _(grad, states, u, dt, A, B, C, D, z, freq, dt_bias, rope_scale, delta_scale, norm_group_dims):
        return tuple(x.new_empty(x.shape) for x in (u, dt, A, B, C, D, z, freq, dt_bias))

    scan_backward.register_autograd(no_second_derivative(name, "defocus_scan"))

    def setup_context(ctx, inputs, output):
        # Else autograd makes a gradient of zeros for the states, as large as they are.
        ctx.set_materialize_grads(False)
        *tensors, ctx.rope_scale, ctx.delta_scale, ctx.norm_group_dims = inputs
        ctx.save_for_backward(output[1], *tensors)
        ctx.mark_non_differentiable(output[1])

    def gradient(ctx, grad, _):
        if grad is None:
            return (None,) * 12
        grads = scan_backward(grad, *ctx.saved_tensors, ctx.rope_scale, ctx.delta_scale, ctx.norm_group_dims)
        return *grads, None, None, None

    run = differentiable(scan, gradient, setup_context)
    return lambda *args: run(*args)[0]

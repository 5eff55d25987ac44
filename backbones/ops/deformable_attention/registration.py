"""Makes a backend's forward and backward functions one operator that torch.compile and autograd understand."""

from collections.abc import Callable

import torch

from backbones.ops.autograd import differentiable


def register_deformable(name: str, forward: Callable, backward: Callable) -> Callable:
    """Registers ``defocus::deformable_attention_<name>`` and its gradient with `torch.library`.

    Args:
        name: Backend name.
        forward: ``(value, sides, locations, weights)`` to the output in the dtype of value; ``sides`` are height and
            width of each map in turn.
        backward: ``(grad, value, sides, locations, weights)`` to the gradients of the three tensors, each in its
            shape and dtype.

    Returns:
        The operator, with the arguments of ``forward``.
    """
    # The schemas are written out: PyTorch 2.6 does not infer one from collections.abc.
    attend = torch.library.custom_op(
        f"defocus::deformable_attention_{name}",
        forward,
        mutates_args=(),
        schema="(Tensor value, SymInt[] sides, Tensor locations, Tensor weights) -> Tensor",
    )

    @attend.register_fake
    def _(value, sides, locations, weights):
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    attend_backward = torch.library.custom_op(
        f"defocus::deformable_attention_{name}_backward",
        backward,
        mutates_args=(),
        schema="(Tensor grad, Tensor value, SymInt[] sides, Tensor locations, Tensor weights)"
        " -> (Tensor, Tensor, Tensor)",
    )

    @attend_backward.register_fake
    def _(grad, value, sides, locations, weights):
        return tuple(x.new_empty(x.shape) for x in (value, locations, weights))

    def setup_context(ctx, inputs, output):
        value, ctx.sides, locations, weights = inputs
        ctx.save_for_backward(value, locations, weights)

    def gradient(ctx, grad):
        value, locations, weights = ctx.saved_tensors
        dvalue, dlocations, dweights = attend_backward(grad, value, ctx.sides, locations, weights)
        return dvalue, None, dlocations, dweights

    return differentiable(attend, gradient, setup_context)

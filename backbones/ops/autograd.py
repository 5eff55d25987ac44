"""How gradients of the backends' operators are made known to autograd."""

from collections.abc import Callable

import torch
from torch.library import CustomOpDef


def differentiable(operator: CustomOpDef, differentiate: Callable, setup_context: Callable) -> Callable:
    """An operator of `torch.library.custom_op` with its gradient.

    PyTorch's own binding of the two (``register_autograd``) looks at every argument, in Python, at every call: longer
    than a small kernel runs. So it serves compilers alone; eager calls go through a `torch.autograd.Function`, in which
    dispatch modes see the operator and that of its gradient as before.

    Args:
        operator: The operator.
        differentiate: ``(ctx, *grads)`` to a gradient, or None, for each argument.
        setup_context: ``(ctx, inputs, output)`` keeps what that needs.

    Returns:
        A function with the operator's arguments.
    """
    operator.register_autograd(differentiate, setup_context=setup_context)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(*inputs):
            return operator(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *grads):
            return differentiate(ctx, *grads)

    def run(*inputs):
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return operator(*inputs)
        return Eager.apply(*inputs)

    return run


def refuse_second_derivatives(
    reason: str, instead: str = 'choose backend="reference" to differentiate its gradient'
) -> Callable:
    """What `torch.library` differentiates a backend's gradient by where the backend has none of it.

    Args:
        reason: Who has first derivatives only.
        instead: What to do.

    Returns:
        A function for ``register_autograd`` that raises a RuntimeError.
    """

    def refuse(ctx, *grads):
        raise RuntimeError(f"{reason}: {instead}")

    return refuse

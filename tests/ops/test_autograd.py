"""An operator with its gradient: called eagerly, compiled, watched, and on shapes alone."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.ops.autograd import differentiable


@torch.library.custom_op("defocus_tests::cubed", mutates_args=())
def cubed(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return scale * x**3, x**2


@cubed.register_fake
def _(x, scale):
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("defocus_tests::cubed_backward", mutates_args=())
def cubed_backward(grad: Tensor, square: Tensor, scale: float) -> Tensor:
    return 3 * scale * square * grad


@cubed_backward.register_fake
def _(grad, square, scale):
    return torch.empty_like(grad)


def _setup_context(ctx, inputs, output):
    ctx.scale = inputs[1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    return cubed_backward(grad, *ctx.saved_tensors, ctx.scale), None


run = differentiable(cubed, _differentiate, _setup_context)


class Seen(TorchDispatchMode):
    """Keeps the names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "defocus_tests":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_gradient_is_that_of_the_formula(compiled):
    function = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    out, square = function(x, 2.0)
    (grad,) = torch.autograd.grad(out, x, torch.tensor([1.0, 10.0, 100.0]))
    assert out.tolist() == [2.0, -16.0, 54.0] and not square.requires_grad
    assert grad.tolist() == [6.0, 240.0, 5400.0]


def test_what_needs_no_gradient_keeps_nothing():
    with torch.no_grad():
        assert run(torch.ones(3, requires_grad=True), 2.0)[0].grad_fn is None
    assert not run(torch.ones(3), 2.0)[0].requires_grad


def test_dispatch_modes_see_both_operators():
    x = torch.ones(3, requires_grad=True)
    with Seen() as seen:
        run(x, 2.0)[0].sum().backward()
    assert seen.names == ["cubed", "cubed_backward"]


def test_shapes_alone_pass_through_both():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(5, 7, requires_grad=True)
        run(x, 2.0)[0].sum().backward()
    assert x.grad.shape == (5, 7)

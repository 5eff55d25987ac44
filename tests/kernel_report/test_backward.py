"""Backward node by node gives what autograd's engine gives."""

import gc
import weakref

import torch
import torch.nn.functional as F

from backbones.kernel_report.backward import followed, gradients
from backbones.mixers.mamba import MambaArch, MambaBlock


class Two(torch.autograd.Function):
    """Two outputs, of which one may have no gradient; a setting between the inputs."""

    @staticmethod
    def forward(ctx, x, strict, y):
        ctx.save_for_backward(x, y)
        ctx.set_materialize_grads(strict)
        return x * y, x + y

    @staticmethod
    def backward(ctx, first, second):
        x, y = ctx.saved_tensors
        second = torch.zeros_like(x) if second is None else second
        return first * y + second, None, first * x + 2 * second


def compare(function, *leaves):
    truth = torch.autograd.grad(function(*leaves).sum(), leaves)
    with followed():
        found = gradients(function(*leaves))
    assert len(found) == len(truth)
    for x in truth:
        assert any(x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y) for y in found)


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_sums_spread_values_and_casts():
    compare(lambda x, y: x * y + x.half().sin().float() + (y.expand(4, 3) * x).exp(), leaf(4, 3), leaf(3))
    compare(lambda x: x.chunk(2, -1)[1] * x.split([1, 1, 2], -1)[0], leaf(2, 4))
    compare(lambda x, w: F.linear(x, w).to(torch.float64) * 2, leaf(5, 3), leaf(4, 3))


def test_functions_written_in_python():
    for strict in (True, False):
        compare(lambda x, y, strict=strict: Two.apply(x.sin(), strict, y)[0] * x, leaf(3), leaf(3))
        compare(lambda x, y, strict=strict: torch.mul(*Two.apply(x, strict, y)).exp(), leaf(3), leaf(3))


def test_a_gradient_of_nothing_is_as_large_as_its_output():
    seen = []

    class Partial(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            states = x.repeat(2)
            ctx.mark_non_differentiable(states)
            return x * 2, states

        @staticmethod
        def backward(ctx, grad, states):
            seen.append(states.shape)
            return grad * 2

    compare(lambda x: Partial.apply(x)[0], leaf(3))
    assert seen == [(6,), (6,)]


def test_a_whole_block():
    block = MambaBlock(MambaArch(embed_dims=8, inner_dims=16, depth=1, dt_rank=2, state_dims=4, norm_group_dims=8))
    x = leaf(1, 5, 8)
    compare(lambda x, *weights: block(x), x, *block.parameters())


def test_what_was_kept_is_let_go_on_the_way():
    held = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            held.append(weakref.ref(x))
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            held.append([watched() is not None for watched in held if isinstance(watched, weakref.ref)])
            return grad * ctx.saved_tensors[0]

    x = leaf(3)
    with followed():
        outputs = [Watch.apply(Watch.apply(x * 2) * 3)]
        gradients(outputs.pop())
    gc.collect()
    # The second one's input is gone when the first one is differentiated.
    assert held[2:] == [[True, True], [True, False]]
    assert [watched() for watched in held[:2]] == [None, None]

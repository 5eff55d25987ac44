"""Every backend of De-focus attention against its definition in float64, and its limits."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from backbones.ops import decay_attention
from backbones.ops.decay_attention import DECAY_ATTENTION
from tests.ops.heads import check, inputs, running
from tests.testing import assert_close, needs_library

RUNNING = running(DECAY_ATTENTION)
scaled = partial(decay_attention, rope_scale=2.25, delta_scale=1.5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("b, l", [(3, 1), (1, 2), (2, 63), (1, 500), (1, 1000)])
@pytest.mark.parametrize("device, backend", RUNNING)
def test_matches_definition(device, backend, b, l, causal):
    check(partial(scaled, causal=causal), inputs(b, l), device, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("device, backend", RUNNING)
def test_16_bit(device, backend, causal, dtype):
    # Many heads: of a few, all gradients of λ may happen to be small beside their errors.
    check(partial(scaled, causal=causal), inputs(1, 150, h=24, dtype=dtype), device, backend)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("device, backend", RUNNING)
def test_without_decay_and_phase_it_is_torchs_attention(device, backend, causal):
    q, k, v, decay, freq = (x.to(device) for x in inputs(2, 300, v=8))
    out = decay_attention(q, k, v, decay * 0, freq * 0, causal=causal, backend=backend)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2))


@pytest.mark.parametrize("device, backend", RUNNING)
def test_later_tokens_change_no_earlier_bit(device, backend):
    values = [x.to(device) for x in inputs(1, 300)]
    before = decay_attention(*values, backend=backend)
    for x in values[:3]:
        x[:, 170] += 1
    after = decay_attention(*values, backend=backend)
    assert torch.equal(before[:, :170], after[:, :170])
    assert not torch.equal(before[:, 170], after[:, 170])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_library)])
def test_gradcheck(causal, backend):
    leaves = [x.double().requires_grad_() for x in inputs(2, 7, h=2, k=4, v=3)]
    assert torch.autograd.gradcheck(partial(scaled, causal=causal, backend=backend), leaves)


@pytest.mark.parametrize("name", ["blocked_attention", pytest.param("decay_attention_cpu", marks=needs_library)])
def test_registered_with_torch_library(name):
    q, k, v, decay, _ = inputs(2, 150)
    args = [x.transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    for causal in (True, False):
        torch.library.opcheck(getattr(torch.ops.defocus, name).default, (*args, decay.requires_grad_(), causal))


def test_the_matrix_of_all_pairs_never_exists():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
            return out

    length, heads = 2000, 4
    leaves = [x.requires_grad_() for x in inputs(1, length, h=heads)]
    with Largest() as largest:
        decay_attention(*leaves, backend="torch").sum().backward()
    assert largest.elements <= heads * length**2 / 8


@needs_library
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_the_number_of_threads_changes_no_bit_of_the_decays_gradient(causal):
    leaves = [x.requires_grad_() for x in inputs(2, 300)]
    threads, grads = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            out = decay_attention(*leaves, causal=causal, backend="cpu")
            grads.append(torch.autograd.grad(out.square().sum(), leaves[3])[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*grads)


@needs_library
def test_the_compiled_gradient_has_no_gradient():
    leaves = [x.requires_grad_() for x in inputs(1, 3)]
    (dq,) = torch.autograd.grad(decay_attention(*leaves, backend="cpu").square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match='decay_attention has first derivatives only: choose backend="reference"'):
        dq.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(k=torch.zeros(1, 4, 3, 6)), r"q and k must be \(b, l, h, k\)"),
        (dict(decay=torch.zeros(2)), r"decay must be \(3,\) and freq \(3, 4\)"),
        (
            dict(v=torch.zeros(1, 4, 3, 12, device="meta")),
            "q is on cpu, k on cpu, v on meta, decay on cpu, freq on cpu",
        ),
    ],
)
def test_bad_input(change, message):
    arguments = dict(zip(("q", "k", "v", "decay", "freq"), inputs(1, 4))) | change
    with pytest.raises(ValueError, match=message):
        decay_attention(**arguments)

"""Sequences of 16 bits, all of them or some: computed in fp32, and rounded once, at the end."""

import pytest
import torch

from tests.ops.test_autocast import OPERATIONS, RUNNING

# Which inputs are sequences, by operation; attention and retention are left out, for they multiply 16-bit matrices.
SEQUENCES = dict(scan=(0, 1, 3, 4, 6), conv=(0, 1, 2), deformable=(0,))
EXACT = [case for case in RUNNING if case.values[0] in SEQUENCES and case.values[2] in ("torch", "cpu", "triton")]


def assert_rounded_once(actual, wide, exact, what):
    """Whether ``actual`` is the fp32 result ``wide``, rounded to the nearest number of its dtype."""
    expected = wide.to(actual.dtype)
    if exact:
        assert torch.equal(actual, expected), what
        return
    # For each dtype a kernel is compiled anew: which products and sums become one instruction, and in which order
    # threads add, may differ. So what is rounded is right but for fp32's own error; a second rounding would be more.
    slack = 1e-6 * wide.abs().max()
    off = (actual.float() - wide).abs() - (expected.float() - wide).abs()
    assert (off <= slack).all(), f"{what}: {off.max():.1e} further off than rounded once, more than {slack:.1e}"


def compare(run, inputs, device, backend, halves, dtype):
    """Runs an operation with some inputs in ``dtype``, and once more with the same numbers in fp32."""
    inputs = [x.to(dtype) if i in halves else x for i, x in enumerate(inputs)]
    leaves = [x.to(device).requires_grad_() for x in inputs]
    wide = [x.detach().float().requires_grad_() for x in leaves]
    out, expected = run(*leaves, backend=backend), run(*wide, backend=backend)
    assert out.dtype == leaves[0].dtype
    exact = not (backend == "triton" and device.startswith("cuda"))
    assert_rounded_once(out, expected, exact, "output")
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    wide_grads = torch.autograd.grad((expected * weight.float()).sum(), wide)
    for i, (actual, grad, leaf) in enumerate(zip(grads, wide_grads, leaves)):
        assert actual.dtype == leaf.dtype
        assert_rounded_once(actual, grad, exact, f"gradient of input {i}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name, device, backend", EXACT)
def test_16_bits_are_rounded_once(name, device, backend, dtype):
    _, run, make = OPERATIONS[name]
    compare(run, make(), device, backend, SEQUENCES[name], dtype)


@pytest.mark.parametrize("halves", [(0,), (1, 6), (1, 3, 4, 6), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("name, device, backend", [case for case in EXACT if case.values[0] == "scan"])
def test_mixed_dtypes_of_the_scan(name, device, backend, halves):
    _, run, make = OPERATIONS[name]
    compare(run, make(), device, backend, halves, torch.bfloat16)

"""Every operation in every backend under autocast, and with values that only fp32 can hold on the way."""

import pytest
import torch

from backbones.ops import causal_conv1d_silu, decay_attention, defocus_scan, deformable_attention, retention
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.decay_attention import DECAY_ATTENTION
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.ops import heads
from tests.testing import TOLERANCE, assert_close


def scan_inputs(l=150, d=16, n=4):
    u, dt, z = (torch.randn(2, l, d) for _ in range(3))
    A = -torch.rand(d, n).add(0.5)
    B, C = torch.randn(2, l, n), torch.randn(2, l, n)
    return [u, dt, A, B, C, torch.randn(d), z, torch.rand(n), torch.randn(d) - 2]


def deformable_inputs():
    return [torch.randn(2, 26, 3, 4), torch.rand(2, 9, 3, 2, 2, 2), torch.rand(2, 9, 3, 2, 2)]


def deform(value, locations, weights, backend):
    return deformable_attention(value, [(4, 5), (2, 3)], locations, weights, backend=backend)


OPERATIONS = {
    "scan": (DEFOCUS_SCAN, lambda *x, backend: defocus_scan(*x, norm_group_dims=8, backend=backend), scan_inputs),
    "conv": (
        CAUSAL_CONV1D,
        causal_conv1d_silu,
        lambda: [torch.randn(2, 40, 16), torch.randn(16, 1, 4), torch.randn(16)],
    ),
    "attention": (DECAY_ATTENTION, decay_attention, lambda: heads.inputs(2, 150)),
    "retention": (RETENTION, retention, lambda: heads.inputs(2, 150)),
    "deformable": (DEFORMABLE_ATTENTION, deform, deformable_inputs),
}
RUNNING = [
    pytest.param(name, *case.values, id=f"{name}-{case.id}", marks=case.marks)
    for name, (operation, _, _) in OPERATIONS.items()
    for case in heads.running(operation, reference=True)
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name, device, backend", RUNNING)
def test_autocast_changes_no_bit(name, device, backend, dtype):
    """What is handed over in fp32 is computed in fp32."""
    operation, run, make = OPERATIONS[name]
    leaves = [x.to(device).requires_grad_() for x in make()]
    expected = run(*leaves, backend=backend)
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    with torch.autocast(device, dtype):
        out = run(*leaves, backend=backend)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    assert out.dtype == torch.float32 and torch.equal(out, expected)
    # Sums that are atomic differ from run to run, by less than 16 bits can tell.
    differ = operation.backends[backend].may_differ(device) is not None
    for actual, grad in zip(grads, expected_grads, strict=True):
        assert_close(actual, grad, "gradient", 1e-6 if differ else 0.0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_under_autocast(name):
    operation, run, make = OPERATIONS[name]
    backend = operation.select("cpu").name
    compiled = torch.compile(lambda *x: run(*x, backend=backend), fullgraph=True, backend="aot_eager")
    values = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(compiled(*values), run(*values, backend=backend), name, 1e-6)


def halves(name):
    """fp16 inputs whose result fp16 can hold, but not the sums and products on the way."""
    if name == "scan":
        # A state near 1e6 that C takes down again, step sizes from 1e-6 to 30.
        values = scan_inputs(l=200)
        step = torch.logspace(-6, 1.477, 16).expand(2, 200, 16)
        values[1] = torch.where(step > 15, step, torch.log(torch.expm1(step)))
        values[8] = torch.zeros(16)
        values[0] = torch.rand(2, 200, 16) * 6e4
        values[4] = values[4] * 1e-3
        values[5] = values[5] * 1e-3
    elif name == "conv":
        # Three taps take most of what the first brings, 4 times 3e4; the first tokens, without it, are gated to zero.
        values = [torch.rand(2, 40, 16) * 3e3 + 2.7e4, -torch.ones(16, 1, 4), torch.randn(16)]
        values[1][:, :, 0] = 4
    elif name == "deformable":
        values = deformable_inputs()
        values[0], values[2] = torch.rand_like(values[0]) * 6e4, values[2] * 0.05
    else:
        # The first products of queries and keys are of the order of 1e6.
        values = heads.inputs(2, 200)
        values[0], values[1] = values[0] * 300, values[1] * 300
        if name == "retention":
            values[2] = values[2] * 1e-3
    sequences = dict(scan=(0, 1, 3, 4, 6), conv=(0, 1, 2), attention=(0, 1, 2), retention=(0, 1, 2), deformable=(0,))
    return [x.half() if i in sequences[name] else x for i, x in enumerate(values)]


@pytest.mark.parametrize("name, device, backend", RUNNING)
def test_extremes_in_fp16(name, device, backend):
    _, run, _ = OPERATIONS[name]
    values = halves(name)
    expected = run(*(x.double() for x in values), backend="reference")
    assert expected.abs().max() < torch.finfo(torch.float16).max
    out = run(*(x.to(device) for x in values), backend=backend)
    assert out.dtype == torch.float16 and out.isfinite().all()
    assert_close(out, expected, name, TOLERANCE[torch.float16])

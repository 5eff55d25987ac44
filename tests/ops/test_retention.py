"""Every form of retention against the parallel one in float64."""

from functools import partial

import pytest
import torch

from backbones.ops import retention
from backbones.ops.retention import RETENTION
from tests.ops.heads import check, inputs, running

RUNNING = running(RETENTION)
scaled = partial(retention, rope_scale=2.25, delta_scale=1.5)


@pytest.mark.parametrize("b, l", [(3, 1), (1, 2), (2, 63), (1, 500), (1, 1000)])
@pytest.mark.parametrize("device, backend", RUNNING)
def test_matches_definition(device, backend, b, l):
    check(scaled, inputs(b, l), device, backend, tolerance=2e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
@pytest.mark.parametrize("device, backend", RUNNING)
def test_16_bit(device, backend, dtype, tolerance):
    check(scaled, inputs(2, 300, dtype=dtype), device, backend, tolerance=tolerance)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_later_tokens_change_no_earlier_bit(device, backend):
    values = [x.to(device) for x in inputs(1, 300)]
    before = retention(*values, backend=backend)
    for x in values[:3]:
        x[:, 170] += 1
    after = retention(*values, backend=backend)
    assert torch.equal(before[:, :170], after[:, :170])
    assert not torch.equal(before[:, 170], after[:, 170])


def test_gradcheck():
    leaves = [x.double().requires_grad_() for x in inputs(2, 7, h=2, k=4, v=3)]
    assert torch.autograd.gradcheck(partial(scaled, backend="torch"), leaves)


def test_long_sequences_in_bf16_stay_finite():
    leaves = [x.requires_grad_() for x in inputs(1, 16384, dtype=torch.bfloat16)]
    out = retention(*leaves, backend="torch")
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().square().sum(), leaves))

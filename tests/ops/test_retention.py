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
    check(scaled, inputs(b, l), device, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device, backend", RUNNING)
def test_16_bit(device, backend, dtype):
    # Many heads: of a few, all gradients of λ may happen to be small beside their errors.
    check(scaled, inputs(1, 200, h=24, dtype=dtype), device, backend)


@pytest.mark.parametrize("device, backend", RUNNING)
def test_later_tokens_change_no_earlier_bit(device, backend):
    values = [x.to(device) for x in inputs(1, 300)]
    before = retention(*values, backend=backend)
    for x in values[:3]:
        x[:, 170] += 1
    after = retention(*values, backend=backend)
    assert torch.equal(before[:, :170], after[:, :170])
    assert not torch.equal(before[:, 170], after[:, 170])


def test_what_16_bit_sequences_add_up_to_is_kept_in_fp32():
    """Next to 32,768 bf16 counts in steps of 256: what a chunk of 128 tokens adds would be lost."""
    ones = torch.ones(1, 65536, 1, 2, dtype=torch.bfloat16)
    out = retention(ones, ones, ones[..., :1], torch.tensor([-1e-9]), torch.zeros(1, 1), backend="torch")
    expected = 2 * torch.arange(1, 65537).double()
    torch.testing.assert_close(out[0, :, 0, 0].double(), expected, rtol=1e-2, atol=0)


def test_gradcheck():
    leaves = [x.double().requires_grad_() for x in inputs(2, 7, h=2, k=4, v=3)]
    assert torch.autograd.gradcheck(partial(scaled, backend="torch"), leaves)


def test_long_sequences_in_bf16_stay_finite():
    leaves = [x.requires_grad_() for x in inputs(1, 16384, dtype=torch.bfloat16)]
    out = retention(*leaves, backend="torch")
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().square().sum(), leaves))

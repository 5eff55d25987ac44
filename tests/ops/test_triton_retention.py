"""The Triton kernels of retention, as `test_triton_attention` tests those of attention.

By hand: ``TRITON_INTERPRET=1 pytest tests/ops/test_triton_retention.py``.
"""

from functools import partial

import pytest
import torch

from backbones.ops import retention
from tests.ops import heads
from tests.ops.test_triton_attention import compare, gradients, multiply_bf16, on_one_gpu
from tests.ops.triton_runs import INTERPRETED, in_interpreter, interpret, needs_triton, on_gpu
from tests.testing import TOLERANCE, assert_close

scaled = partial(retention, rope_scale=2.25, delta_scale=1.5)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks whose borders are crossed within few tokens, and values that take several blocks."""
    from backbones.ops.retention import triton_kernels

    monkeypatch.setattr(triton_kernels, "CHUNK", dict.fromkeys(triton_kernels.CHUNK, 16))
    monkeypatch.setattr(triton_kernels, "BLOCK_V", 16)


@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "short_chunks")
@pytest.mark.parametrize("sizes", [(2, 1, 2, 8, 12), (1, 13, 2, 20, 6), (2, 71, 2, 16, 34), (1, 96, 1, 6, 16)], ids=str)
def test_interpreted_retention(sizes):
    heads.check(scaled, heads.inputs(*sizes), "cpu", "triton")


@in_interpreter
def test_interpreted_retention_in_the_chunks_of_the_gpu():
    heads.check(scaled, heads.inputs(1, 150, h=1, k=64, v=128), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_in_fp16():
    heads.check(scaled, heads.inputs(1, 50, h=4, k=16, v=16, dtype=torch.float16), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_in_bf16(monkeypatch):
    multiply_bf16(monkeypatch)
    values = heads.inputs(1, 50, h=4, k=16, v=16, dtype=torch.bfloat16)
    # Twice what is allowed elsewhere: the interpreter cuts the digits off that bf16 has no room for.
    compare(scaled, values, 0.1, torch.randn(1, 50, 4, 16))


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("halves", [(0,), (1, 2), (0, 2)], ids=str)
def test_interpreted_retention_of_mixed_dtypes_is_of_fp32(halves):
    values = [x.half() if i in halves else x for i, x in enumerate(heads.inputs(1, 20))]
    actual = gradients(scaled, values, backend="triton")
    expected = gradients(scaled, [x.float() for x in values], backend="triton")
    for x, truth, dtype in zip(actual, expected, (values[0].dtype, *(x.dtype for x in values)), strict=True):
        assert x.dtype == dtype
        assert_close(x, truth, tolerance=TOLERANCE[dtype])


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_of_views_and_a_gradient_of_strides_0():
    qkv = torch.randn(2, 20, 3, 2, 16)
    *_, decay, freq = heads.inputs(1, 1, h=2, k=16)
    compare(scaled, [*qkv.unbind(2), decay, freq], 3e-5)


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("b, l", [(0, 5), (2, 0)], ids=["samples", "tokens"])
def test_interpreted_retention_of_nothing(b, l):
    out, *grads = gradients(scaled, heads.inputs(b, l), backend="triton")
    assert out.shape == (b, l, 3, 12)
    assert all(not g.any() for g in grads)


@in_interpreter
def test_interpreted_retention_with_angles_of_thousands_of_radians():
    # Of an angle near 4,000 radians fp32 knows 2e-4, of a whole one ten times less than is allowed.
    values = heads.inputs(1, 330, h=1, k=4, v=3)
    values[-1] = values[-1] * 0 + torch.tensor([3.1, 2.3])
    compare(partial(retention, rope_scale=0.25, delta_scale=4.0), values, 3e-5, torch.randn(1, 330, 1, 3))


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_with_a_decay_of_nothing_and_of_everything():
    values = heads.inputs(1, 70, h=4)
    values[3] = torch.tensor([0.0, -1e-6, -2.0, -60.0])
    compare(retention, values, 3e-5, torch.randn(1, 70, 4, 12))


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_gives_the_same_bits_again():
    values, weight = heads.inputs(1, 40, h=2), torch.randn(1, 40, 2, 12)
    first, second = (gradients(scaled, values, weight, backend="triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_operator_of_retention():
    leaves = [x.requires_grad_() for x in heads.inputs(1, 5, h=1, k=4, v=2)]
    torch.library.opcheck(torch.ops.defocus.retention_triton.default, (*leaves, 2.25, 1.5))


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_retention_refuses_what_it_cannot_do():
    values = heads.inputs(1, 3, h=1)
    with pytest.raises(ValueError, match=r'got v in torch.float64: cast it, or choose backend="torch"'):
        retention(*values[:2], values[2].double(), *values[3:], backend="triton")
    leaves = [x.requires_grad_() for x in values]
    out = retention(*leaves, backend="triton")
    (dq,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match='retention has first derivatives only: choose backend="reference"'):
        dq.sum().backward()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_4705_tokens(dtype):
    heads.check(scaled, heads.inputs(1, 4705, h=6, k=64, v=128, dtype=dtype), "cuda", "triton")


@on_gpu
def test_65536_tokens_are_finite_and_repeat():
    values = on_one_gpu(1, 65536, v=128)
    first, second = (gradients(scaled, values, backend="triton") for _ in range(2))
    for name, x, y in zip(("output", *heads.NAMES), first, second, strict=True):
        assert x.isfinite().all(), name
        assert torch.equal(x, y), name

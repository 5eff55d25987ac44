"""The Triton kernels of attention: in Triton's interpreter, through the compiler, and on a GPU where there is one.

The interpreter has to be on before Triton is imported, so `test_in_the_interpreter` runs the tests here called
`test_interpreted_…` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest tests/ops/test_triton_attention.py``.
"""

from functools import partial

import pytest
import torch

from backbones.ops import decay_attention
from tests.ops import heads
from tests.ops.triton_runs import INTERPRETED, in_interpreter, interpret, needs_triton, on_gpu
from tests.testing import TOLERANCE, assert_close

scaled = partial(decay_attention, rope_scale=2.25, delta_scale=1.5)
both = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
TABLES = ("FORWARD", "QUERY_GRADIENT", "KEY_GRADIENT")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks whose borders are crossed within few tokens."""
    from backbones.ops.decay_attention import triton_kernels

    for table, sizes in zip(TABLES, ((32, 16), (16, 16), (16, 32)), strict=True):
        settings = {dtype: (*sizes, *rest) for dtype, (_, _, *rest) in getattr(triton_kernels, table).items()}
        monkeypatch.setattr(triton_kernels, table, settings)


def gradients(operation, values, weight=None, **options):
    """Output and gradients of Σ output · weight, or of the plain sum, whose gradient has strides of 0."""
    leaves = [x.detach().requires_grad_() for x in values]
    out = operation(*leaves, **options)
    total = out.sum() if weight is None else (out * weight).sum()
    return [out.detach(), *torch.autograd.grad(total, leaves)]


def compare(operation, values, tolerance, weight=None, backend="triton"):
    """Output and gradients against the definition in float64, each by its own tolerance."""
    expected = gradients(operation, [x.double() for x in values], weight, backend="reference")
    actual = gradients(operation, values, weight, backend=backend)
    for name, x, truth in zip(("output", *heads.NAMES), actual, expected, strict=True):
        assert_close(x, truth, name, tolerance, floor=0.2)


# Tokens: one, less than a block, several blocks and a part of one. Widths: even ones that fill no power of two.
@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "small_blocks")
@both
@pytest.mark.parametrize("sizes", [(2, 1, 2, 8, 12), (1, 13, 2, 20, 6), (2, 39, 2, 16, 16), (1, 96, 1, 6, 34)], ids=str)
def test_interpreted_attention(sizes, causal):
    b, l, h, k, v = sizes
    heads.check(partial(scaled, causal=causal), heads.inputs(b, l, h, k, v), "cpu", "triton")


@in_interpreter
@both
def test_interpreted_attention_in_the_blocks_of_the_gpu(causal):
    heads.check(partial(scaled, causal=causal), heads.inputs(1, 150, h=1, k=64, v=64), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@both
def test_interpreted_attention_in_fp16(causal):
    values = heads.inputs(1, 50, h=2, k=16, v=16, dtype=torch.float16)
    heads.check(partial(scaled, causal=causal), values, "cpu", "triton")
    # The first products are of the order of 1e6.
    values[0], values[1] = values[0] * 300, values[1] * 300
    out = scaled(*values, causal=causal, backend="triton")
    assert_close(out, scaled(*(x.double() for x in values), causal=causal, backend="reference"))


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@both
def test_interpreted_attention_in_bf16(monkeypatch, causal):
    multiply_bf16(monkeypatch)
    values = heads.inputs(1, 50, h=2, k=16, v=16, dtype=torch.bfloat16)
    # Twice what is allowed elsewhere: the interpreter cuts the digits off that bf16 has no room for.
    compare(partial(scaled, causal=causal), values, 0.1, torch.randn(1, 50, 2, 16))


def multiply_bf16(monkeypatch):
    """Mends the interpreter, which keeps bf16 in integers and multiplies those."""
    import numpy
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda self, a, b, *x: dot(self, widened(a), widened(b), *x))


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("halves", [(0,), (1, 2), (0, 2)], ids=str)
def test_interpreted_attention_of_mixed_dtypes_is_of_fp32(halves):
    values = [x.half() if i in halves else x for i, x in enumerate(heads.inputs(1, 20))]
    actual = gradients(scaled, values, backend="triton")
    expected = gradients(scaled, [x.float() for x in values], backend="triton")
    dtypes = (values[0].dtype, *(x.dtype for x in values))
    for x, truth, dtype in zip(actual, expected, dtypes, strict=True):
        assert x.dtype == dtype
        # Backward takes the output as it was rounded, to the dtype of q.
        assert_close(x, truth, tolerance=max(TOLERANCE[dtype], TOLERANCE[values[0].dtype]))


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@both
def test_interpreted_attention_of_views_and_a_gradient_of_strides_0(causal):
    # As the mixer hands them over: parts of one product.
    qkv = torch.randn(2, 20, 3, 2, 16)
    *_, decay, freq = heads.inputs(1, 1, h=2, k=16)
    compare(partial(scaled, causal=causal), [*qkv.unbind(2), decay, freq], 2e-5)
    transposed = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in qkv.unbind(2)]
    compare(partial(scaled, causal=causal), [*transposed, decay, freq], 2e-5)


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("b, l", [(0, 5), (2, 0)], ids=["samples", "tokens"])
def test_interpreted_attention_of_nothing(b, l):
    out, *grads = gradients(scaled, heads.inputs(b, l), backend="triton")
    assert out.shape == (b, l, 3, 12)
    assert all(not g.any() for g in grads)


@in_interpreter
@both
def test_interpreted_attention_with_angles_of_thousands_of_radians(causal):
    # Of an angle near 4,000 radians fp32 knows 2e-4, of a whole one ten times less than is allowed.
    values = heads.inputs(1, 330, h=1, k=4, v=3)
    values[-1] = values[-1] * 0 + torch.tensor([3.1, 2.3])
    weight = torch.randn(1, 330, 1, 3)
    compare(partial(decay_attention, rope_scale=0.25, delta_scale=4.0, causal=causal), values, 3e-5, weight)


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@both
def test_interpreted_attention_with_a_decay_of_nothing_and_of_everything(causal):
    # Far keys keep their share of a uniform look, and the decay of neighbouring blocks is no number of fp32.
    values = heads.inputs(1, 70, h=4)
    values[3] = torch.tensor([0.0, -1e-6, -2.0, -60.0])
    compare(partial(decay_attention, causal=causal), values, 3e-5, torch.randn(1, 70, 4, 12))


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
@both
def test_interpreted_attention_gives_the_same_bits_again(causal):
    values, weight = heads.inputs(1, 40, h=2), torch.randn(1, 40, 2, 12)
    first, second = (gradients(scaled, values, weight, causal=causal, backend="triton") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@in_interpreter
def test_interpreted_attention_sees_no_token_ahead():
    values = heads.inputs(1, 140, h=1)
    before = decay_attention(*values, backend="triton")
    for x in values[:3]:
        x[:, 100] += 1
    after = decay_attention(*values, backend="triton")
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100], after[:, 100])


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
def test_interpreted_operator_of_attention():
    leaves = [x.requires_grad_() for x in heads.inputs(1, 5, h=1, k=4, v=2)]
    torch.library.opcheck(torch.ops.defocus.decay_attention_triton.default, (*leaves, 2.25, 1.5, True))


@in_interpreter
@pytest.mark.usefixtures("small_blocks")
def test_interpreted_attention_refuses_what_it_cannot_do():
    values = heads.inputs(1, 3, h=1)
    with pytest.raises(ValueError, match=r'got k in torch.float64: cast it, or choose backend="torch"'):
        decay_attention(values[0], values[1].double(), *values[2:], backend="triton")
    leaves = [x.requires_grad_() for x in values]
    out = decay_attention(*leaves, backend="triton")
    (dq,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match='decay_attention has first derivatives only: choose backend="reference"'):
        dq.sum().backward()


def on_one_gpu(b, l, h=12, k=64, v=64, dtype=torch.bfloat16, device="cuda"):
    return [x.to(device) for x in heads.inputs(b, l, h, k, v, dtype)]


@on_gpu
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_4705_tokens(dtype, causal):
    # λ's and θ's gradients are sums over all pairs of tokens.
    heads.check(partial(scaled, causal=causal), heads.inputs(1, 4705, h=6, k=64, v=64, dtype=dtype), "cuda", "triton")


@on_gpu
@both
def test_65536_tokens_take_memory_by_the_length_and_repeat(causal):
    values = on_one_gpu(1, 65536)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    first, second = (gradients(scaled, values, causal=causal, backend="triton") for _ in range(2))
    for name, x, y in zip(("output", *heads.NAMES), first, second, strict=True):
        assert x.isfinite().all(), name
        assert torch.equal(x, y), name
    # 2.3 GB, of both runs; the pairs of a single head would be a matrix of 8 GB.
    assert torch.cuda.max_memory_allocated() - before < 24 * values[0].nbytes


@on_gpu
@both
def test_one_compilation_serves_every_length(causal):
    from backbones.ops.decay_attention import triton_kernels

    kernels = [x for name, x in vars(triton_kernels).items() if name.endswith("_kernel")]
    gradients(scaled, on_one_gpu(1, 1000), causal=causal, backend="triton")
    before = [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]
    for l in range(500, 1500, 50):
        values = on_one_gpu(1, l + l // 50)
        heads.check(partial(scaled, causal=causal), [x.cpu() for x in values], "cuda", "triton")
    assert [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels] == before


@on_gpu
def test_forward_and_backward_in_a_captured_graph():
    leaves = [x.requires_grad_() for x in on_one_gpu(2, 1000)]

    def step():
        out = scaled(*leaves, backend="triton")
        return out, *torch.autograd.grad(out.sum(), leaves)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in leaves[:3]:
            x.normal_()
    graph.replay()
    for x, y in zip(captured, step(), strict=True):
        assert torch.equal(x, y)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_on_a_gpu_that_is_not_the_current_one():
    values = on_one_gpu(1, 300)
    expected = gradients(scaled, values, backend="triton")
    actual = gradients(scaled, [x.to("cuda:1") for x in values], backend="triton")
    assert all(x.device.index == 1 and torch.equal(x.cpu(), y.cpu()) for x, y in zip(actual, expected, strict=True))

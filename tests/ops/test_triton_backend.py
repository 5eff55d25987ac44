"""The Triton kernels: in Triton's interpreter, through the compiler for H200, and on a GPU where there is one.

The interpreter has to be on before Triton is imported, so `test_in_the_interpreter` runs the tests here called
`test_interpreted_…` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest tests/ops/test_triton_backend.py``.
"""

import subprocess
import sys

import pytest
import torch

from backbones.mixers import MambaBlock
from backbones.mixers.mamba import MambaArch
from backbones.ops import causal_conv1d_silu, defocus_scan
from backbones.ops.selective_scan.naive import rotate_states
from tests.ops.test_causal_conv1d import check as check_convolution
from tests.ops.test_dtypes import compare
from tests.ops.test_mamba_inner import check as check_inner
from tests.ops.test_selective_scan import (
    NAMES,
    check,
    check_expanded_gradient,
    check_registration,
    check_repeats,
    check_second_derivative,
    check_that_a_nan_stays,
    check_views,
    run,
    truth,
)
from tests.ops.triton_runs import CUDA, INTERPRETED, compile_launches, in_interpreter, interpret, needs_triton, on_gpu
from tests.testing import assert_close


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_in_the_interpreter():
    interpret(__file__)


def shorten_chunks(monkeypatch, chunk, piece, segments=None):
    """Borders of chunks, segments and blocks are then crossed within few tokens and channels."""
    from backbones.ops.selective_scan import triton_kernels

    monkeypatch.setattr(triton_kernels, "CHUNK", chunk)
    monkeypatch.setattr(triton_kernels, "PIECE", piece)
    monkeypatch.setattr(triton_kernels, "PART", 32)
    if segments:
        monkeypatch.setattr(triton_kernels, "_cut", lambda b, l, d, n, device: segments)


@pytest.fixture
def short_chunks(monkeypatch):
    shorten_chunks(monkeypatch, 4, 2)


# (b, l, d, n, norm group): sizes that fill no block of channels, states, chunks or pieces of chunks; a group of several
# blocks, and of channels for which the gradients of B and C have several parts.
@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "short_chunks")
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 20, 8, 10), (1, 2, 32, 16, 32), (2, 5, 20, 2, 10), (1, 5, 40, 2, 40), (1, 2, 3, 64, 1)],
    ids=str,
)
def test_interpreted_scan(shape):
    check(truth(shape), "cpu", "triton")


# From Hopper on a thread of the last pass has a channel to itself.
@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "short_chunks")
@pytest.mark.parametrize("shape", [(1, 2, 40, 16, 40), (1, 7, 34, 2, 17)], ids=str)
def test_interpreted_scan_in_tiles_of_32_channels(monkeypatch, shape):
    from backbones.ops.selective_scan import triton_kernels

    monkeypatch.setattr(triton_kernels, "_backward_channels", lambda device, block_n: 32)
    check(truth(shape), "cpu", "triton")


# One chunk a segment, and more segments than are joined at once; segments of two chunks and of three.
@in_interpreter
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("length, segments", [(38, 10), (29, 3)])
def test_interpreted_scan_in_segments(monkeypatch, length, segments):
    shorten_chunks(monkeypatch, 4, 4, segments)
    check(truth((1, length, 4, 2, 4)), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("poisoned_memory")
def test_interpreted_scan_of_whole_chunks():
    check(truth((1, 34, 4, 6, 4)), "cpu", "triton")


@in_interpreter
def test_interpreted_phase_of_positions_beyond_300():
    from backbones.ops.selective_scan import triton_kernels

    B, C, freq = torch.randn(1, 400, 6), torch.randn(1, 400, 6), torch.rand(6)
    for x, turned in zip((B, C), triton_kernels._turn(B, C, freq, 0.1)):
        assert_close(turned[:, :400, :6], rotate_states(x.double(), freq.double(), 0.1), tolerance=1e-6)


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_interpreted_scan_in_16_bit(dtype):
    check(truth((1, 5, 16, 4, 8), dtype), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_scan_of_mixed_dtypes():
    # Not bf16: the interpreter cuts its digits off.
    inputs, _, group, _, _ = truth((1, 5, 8, 4, 8))
    compare(lambda *x, backend: run(x, group, backend), inputs, "cpu", "triton", (0, 3, 6), torch.float16)


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_scan_with_step_sizes_from_1e_6_to_30():
    check(truth((1, 5, 16, 4, 16), delta="extreme"), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_scan_of_views():
    check_views(truth((2, 3, 8, 6, 8)), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_gradient_of_a_sum():
    check_expanded_gradient((2, 3, 8, 4, 4), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_empty_batch():
    check(truth((0, 5, 8, 4, 4)), "cpu", "triton")
    check_convolution((0, 5, 8, 4), torch.float32, "cpu", "triton")


@in_interpreter
def test_interpreted_scan_twice(monkeypatch):
    shorten_chunks(monkeypatch, 4, 2, 2)
    check_repeats((1, 6, 20, 4, 10), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_scan_keeps_a_nan_in_its_sample():
    check_that_a_nan_stays((3, 2, 8, 4, 8), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_operator():
    check_registration((1, 2, 4, 2, 4), "cpu", "triton")


@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "short_chunks")
@pytest.mark.parametrize("batch, dtype", [(2, torch.float32), (1, torch.float16)], ids=str)
def test_interpreted_inner_part_of_a_block(batch, dtype):
    check_inner((batch, 5, 12, 4, 3), 6, "cpu", "triton", dtype)


@in_interpreter
@pytest.mark.usefixtures("short_chunks")
def test_interpreted_second_derivatives_are_refused():
    check_second_derivative((1, 2, 4, 2, 4), "cpu", "triton")
    x, weight, bias = torch.randn(1, 3, 2, requires_grad=True), torch.randn(2, 1, 4), torch.randn(2)
    out = causal_conv1d_silu(x, weight, bias, backend="triton")
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='causal_conv1d_silu has no second derivative: choose backend="reference"'):
        grad.sum().backward()


@in_interpreter
def test_interpreted_states_beyond_a_program_are_refused():
    inputs, *_ = truth((1, 1, 2, 130, 2))
    with pytest.raises(ValueError, match=r'at most 128 states.*got 130: choose backend="torch"'):
        run(inputs, 2, "triton")


@in_interpreter
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 1, 5, 4), torch.float32),
        ((1, 34, 70, 4), torch.float32),
        ((1, 3, 33, 3), torch.float32),
        ((1, 70, 20, 2), torch.float32),
        ((2, 5, 130, 1), torch.float32),
        ((2, 5, 33, 4), torch.bfloat16),
        ((2, 5, 33, 4), torch.float16),
    ],
    ids=str,
)
def test_interpreted_convolution(shape, dtype):
    check_convolution(shape, dtype, "cpu", "triton")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize(
    "shape, dtype",
    [
        # In bf16 tests/kernel_report compiles all kernels at this width.
        ((2, 100, 1536, 16, 64), torch.float32),
        ((1, 1, 1, 2, 1), torch.float16),
    ],
    ids=str,
)
def test_compiles_for_h200(shape, dtype, monkeypatch, tmp_path):
    import triton

    from backbones.ops.causal_conv1d import triton_kernels as conv
    from backbones.ops.selective_scan import triton_kernels as scan

    compiled = compile_launches(monkeypatch, tmp_path, 90)
    monkeypatch.setattr(scan, "_cut", lambda b, l, d, n, device: triton.cdiv(l, scan.CHUNK))
    b, l, d, n, group = shape
    u, z = torch.zeros(b, l, 2 * d, dtype=dtype).chunk(2, -1)
    dt, (B, C) = torch.zeros(b, l, d, dtype=dtype), torch.zeros(b, l, 2 * n, dtype=dtype).chunk(2, -1)
    A, D, freq, dt_bias = torch.zeros(d, n), torch.zeros(d), torch.zeros(n), torch.zeros(d)
    inputs = (u, dt, A, B, C, D, z, freq, dt_bias, 2.25, 1.5, group)
    out, states = scan.forward(*inputs)
    scan.backward(out, states, *inputs)
    weight, bias = torch.zeros(d, 1, 4, dtype=dtype), torch.zeros(d, dtype=dtype)
    conv.backward(conv.forward(u, weight, bias), u, weight, bias)
    kernels = {name for module in (scan, conv) for name in vars(module) if name.endswith("_kernel")}
    # One segment needs no end state for the next.
    assert {name for name, _ in compiled} == kernels - ({"_segment_state_kernel"} if l == 1 else set())
    for _, result in compiled:
        assert result.asm["cubin"]
        assert result.metadata.shared <= 227 * 1024


@pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA GPU or the interpreter")
def test_float64_is_refused():
    device = "cpu" if INTERPRETED else "cuda"
    inputs, *_ = truth((1, 1, 48, 8, 16))
    with pytest.raises(ValueError, match=r'got u in torch.float64: cast it, or choose backend="torch"'):
        run([x.double().to(device) for x in inputs], 16, "triton")
    x = torch.zeros(1, 2, 3, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r'got x in torch.float64: cast it, or choose backend="torch"'):
        causal_conv1d_silu(x, x.new_zeros(3, 1, 4), x.new_zeros(3), backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="served there")
def test_refusal_on_the_cpu_says_why():
    inputs, *_ = truth((1, 1, 48, 8, 16))
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run on cpu: (Triton kernels need CUDA|.*install)"):
        run(inputs, 16, "triton")
    with pytest.raises(RuntimeError, match="backend='mamba_ssm' cannot run on cpu: the kernels of mamba_ssm need CUDA"):
        run(inputs, 16, "mamba_ssm")


def test_kernels_are_not_imported_before_they_run():
    # None in place of a module makes its import fail: the package has to work without Triton.
    program = """
import sys
sys.modules["triton"] = None
import torch
import backbones.ops
from backbones.ops.selective_scan import DEFOCUS_SCAN
assert not [name for name in sys.modules if name.endswith("triton_kernels")]
assert "not installed" in DEFOCUS_SCAN.backends["triton"].refusal("cuda")
x = torch.ones(1, 3, 8)
v, A = torch.ones(8), -torch.ones(8, 2)
BC = torch.ones(1, 3, 2)
backbones.ops.defocus_scan(x, x, A, BC, BC, v, x, torch.ones(2), v, norm_group_dims=8, backend="torch")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def block_and_input(device):
    arch = MambaArch(embed_dims=64, inner_dims=128, depth=1)
    return MambaBlock(arch, rope_scale=2.25, delta_scale=1.5).to(device), torch.randn(2, 300, 64).to(device)


def gradients(block, x):
    with torch.autocast("cuda", torch.bfloat16):
        out = block(x)
    return out, *torch.autograd.grad(out.square().sum(), list(block.parameters()))


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_the_second_gpu():
    check(truth((2, 130, 64, 16, 32)), "cuda:1", "triton", tolerance=5e-5)


@on_gpu
def test_a_training_step_in_a_captured_graph():
    block, x = block_and_input("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(block, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(block, x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    for actual, expected in zip(captured, gradients(block, x), strict=True):
        assert torch.equal(actual, expected)


@on_gpu
def test_a_compiled_block():
    block, x = block_and_input("cuda")
    expected = gradients(block, x)
    for actual, grad in zip(gradients(torch.compile(block, fullgraph=True), x), expected, strict=True):
        assert_close(actual, grad, tolerance=2e-2)


@on_gpu
def test_4705_tokens():
    check(truth((1, 4705, 192, 16, 64)), "cuda", "triton", tolerance=5e-5)


@on_gpu
def test_65536_tokens_of_the_base_size_are_finite_and_repeat():
    l, d, n = 65536, 1536, 16
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*size, dtype=torch.bfloat16):
        return torch.randn(*size, generator=g, device="cuda").to(dtype)

    A = -torch.arange(1, n + 1, device="cuda").float().expand(d, n)
    D, dt_bias = normal(d, dtype=torch.float32), normal(d, dtype=torch.float32) - 2
    freq = torch.rand(n, generator=g, device="cuda")
    inputs = [normal(1, l, d), normal(1, l, d), A, normal(1, l, n), normal(1, l, n), D, normal(1, l, d), freq, dt_bias]

    def once():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = defocus_scan(*leaves, backend="triton")
        return out, *torch.autograd.grad(out.float().square().sum(), leaves)

    for name, first, second in zip(("output", *NAMES), once(), once()):
        assert first.isfinite().all(), name
        assert torch.equal(first, second), name

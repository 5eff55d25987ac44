"""What only the compiled backend has, such as threads. Its results are checked with all the others'."""

import pytest
import torch

from backbones.ops import causal_conv1d_silu, cpu_extension, defocus_scan
from backbones.ops.dispatch import Backend
from tests.testing import lacks_compiler, needs_library, skip_reason


@needs_library
def test_where_there_is_a_compiler_there_is_the_library():
    assert cpu_extension.refusal("cpu") is None


@pytest.mark.skipif(lacks_compiler() is not None, reason=str(lacks_compiler()))
def test_a_build_that_fails_is_no_reason_to_skip():
    broken = Backend("cpu", print, lambda device: "it does not compile")
    assert skip_reason(broken, "cpu") is None
    assert skip_reason(broken, "cuda") == "it does not compile"


@needs_library
def test_bits_depend_neither_on_the_run_nor_on_the_threads():
    b, l, d, n = 2, 200, 192, 16

    def leaf(*shape):
        return torch.randn(*shape).requires_grad_()

    A = (-torch.rand(d, n) - 0.1).requires_grad_()
    scan = [leaf(b, l, d), leaf(b, l, d), A, leaf(b, l, n), leaf(b, l, n), leaf(d), leaf(b, l, d), leaf(n), leaf(d)]
    conv = [leaf(b, l, d), leaf(d, 1, 4), leaf(d)]
    weight = torch.randn(b, l, d)

    def results():
        for run, leaves in (
            (lambda: defocus_scan(*scan, backend="cpu"), scan),
            (lambda: causal_conv1d_silu(*conv, backend="cpu"), conv),
        ):
            out = run()
            yield out
            yield from torch.autograd.grad((out * weight).sum(), leaves)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = list(results())
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            for expected, actual in zip(first, results()):
                assert torch.equal(expected, actual)
    finally:
        torch.set_num_threads(before)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolution_is_registered_with_torch_library(dtype):
    wide = torch.randn(2, 9, 24, dtype=dtype)
    arguments = [wide[..., :12].requires_grad_(), *(torch.randn(s, dtype=dtype) for s in ((12, 1, 4), (12,)))]
    torch.library.opcheck(torch.ops.defocus.causal_conv1d_silu_cpu.default, arguments)

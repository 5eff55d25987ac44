"""The branches of the `cpu` backends' C++ that this processor does not take, compiled and run all the same."""

import os
import platform
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from backbones.ops import causal_conv1d_silu, cpu_extension, decay_attention, deformable_attention
from tests.ops import heads
from tests.ops.test_causal_conv1d import definition
from tests.ops.test_deformable_attention import SHAPES as MAPS
from tests.ops.test_deformable_attention import inputs as deformable_inputs
from tests.ops.test_selective_scan import check, truth
from tests.testing import assert_close

# What makes a compiler take a branch of vec.h: vectors of 16 bytes without instructions for fp16, of 32 and of 64.
BRANCHES = {
    "sse2": ["-march=x86-64"],
    "avx2": ["-mno-avx512f"],
    "avx512": ["-include", str(Path(__file__).with_name("stand_in_for_avx512.h"))],
}


@pytest.fixture(scope="module", params=BRANCHES)
def branch(request, tmp_path_factory):
    """While tests ask for it, the library in use is a branch's, which takes a few seconds to compile."""
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = next(filter(None, map(shutil.which, named[:1] or cpu_extension.COMPILERS)), None)
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs a C++ compiler and an x86-64 processor")
    if request.param == ("avx512" if "avx512f" in cpu_extension._processor() else "avx2"):
        pytest.skip("this processor's own branch, which all other tests run")
    folder = tmp_path_factory.mktemp(request.param)
    script = folder / "c++"
    # Of several -O and -march the last ones count.
    command = shlex.join([compiler, *named[1:]])
    script.write_text(f'#!/bin/sh\nexec {command} "$@" -O0 {shlex.join(BRANCHES[request.param])}\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(script))
        patch.setenv("DEFOCUS_CACHE_DIR", str(folder))
        cpu_extension._build.cache_clear()
        assert cpu_extension.refusal("cpu") is None
        yield
    cpu_extension._build.cache_clear()


@pytest.mark.usefixtures("branch", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 70, 72, 6, 24), (1, 65, 20, 22, 4)], ids=str)
def test_scan(shape, dtype):
    check(truth(shape, dtype), "cpu", "cpu")


@pytest.mark.usefixtures("branch")
def test_scan_with_step_sizes_from_1e_6_to_30():
    check(truth((1, 200, 64, 16, 32), delta="extreme"), "cpu", "cpu")


@pytest.mark.usefixtures("branch", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_convolution(dtype):
    leaves = [x.to(dtype).requires_grad_() for x in (torch.randn(2, 70, 300), torch.randn(300, 1, 4), torch.randn(300))]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    compare(causal_conv1d_silu(*leaves, backend="cpu"), definition(*doubles), leaves, doubles)


@pytest.mark.usefixtures("branch", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_deformable_attention(dtype):
    doubles = deformable_inputs(width=43)
    leaves = [x.detach().to(dtype).requires_grad_() for x in doubles]
    actual, expected = (
        deformable_attention(value, MAPS, *rest, backend=backend)
        for (value, *rest), backend in ((leaves, "cpu"), (doubles, "reference"))
    )
    compare(actual, expected, leaves, doubles)


@pytest.mark.usefixtures("branch", "poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_decay_attention(dtype, causal):
    values = heads.inputs(2, 70, h=4, dtype=dtype)
    if dtype == torch.float64:
        values = [x.double() for x in values]
    leaves = [x.requires_grad_() for x in values]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    actual, expected = (
        decay_attention(*x, causal=causal, backend=backend) for x, backend in ((leaves, "cpu"), (doubles, "reference"))
    )
    compare(actual, expected, leaves, doubles, heads.limit(dtype, 70, "cpu") if dtype != torch.float64 else None)


def compare(actual, expected, leaves, doubles, tolerance=None):
    """A result and its gradients with those in float64."""
    assert_close(actual, expected, "output", tolerance)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((actual * weight).sum(), leaves)
    expected_grads = torch.autograd.grad((expected * weight).sum(), doubles)
    for i, (grad, expected_grad) in enumerate(zip(grads, expected_grads)):
        assert_close(grad, expected_grad, f"gradient {i}", tolerance)

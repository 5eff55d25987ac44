"""What only the compiled backend has: a compiler, a cache, threads. Its results are checked with all the others'."""

import logging
import os
import stat
import subprocess
import sys

import pytest
import torch

from backbones.ops import causal_conv1d_silu, cpu_extension, defocus_scan
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.selective_scan import DEFOCUS_SCAN

needs_library = pytest.mark.skipif(cpu_extension.refusal("cpu") is not None, reason="no working C++ compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder, and a process that has not built or chosen anything."""
    monkeypatch.setenv("DEFOCUS_CACHE_DIR", str(tmp_path / "cache"))
    cpu_extension._build.cache_clear()
    for operation in (DEFOCUS_SCAN, CAUSAL_CONV1D):
        monkeypatch.setattr(operation, "_selected", {})
    yield tmp_path
    cpu_extension._build.cache_clear()


def write_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_serves_cpu_only():
    assert cpu_extension.refusal("cuda") == "runs on cpu, not on cuda"


def test_without_compiler_torch_takes_over_with_one_warning(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    caplog.set_level(logging.WARNING, "backbones")
    assert DEFOCUS_SCAN.select("cpu").name == "torch"
    assert CAUSAL_CONV1D.select("cpu").name == "torch"
    (record,) = caplog.records
    assert "CXX='no-such-compiler' is not found; install one" in record.getMessage()
    with pytest.raises(RuntimeError, match="'cpu' cannot run on cpu: CXX='no-such-compiler' is not found"):
        DEFOCUS_SCAN.select("cpu", "cpu")


def test_failed_compile_says_what_the_compiler_said(fresh, monkeypatch):
    monkeypatch.setenv("CXX", write_compiler(fresh / "c++", "echo 'fatal error: too old' >&2\nexit 1"))
    assert "fatal error: too old" in cpu_extension.refusal("cpu")
    # The lock alone is left: what is half built never looks like a library.
    assert {path.suffix for path in (fresh / "cache").iterdir()} == {".lock"}


@needs_library
def test_cache_is_reused_and_several_processes_build_once(fresh):
    log = fresh / "compiled"
    # Counts compilations, which alone have -c.
    script = f'for word; do [ "$word" = -c ] && echo x >> {log}; done\nexec c++ "$@"'
    environment = os.environ | {"CXX": write_compiler(fresh / "counting", script)}
    command = [sys.executable, "-c", "from backbones.ops import cpu_extension as e; assert e.refusal('cpu') is None"]
    together = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in together] == [0, 0, 0]
    subprocess.run(command, env=environment, check=True)
    assert len(log.read_text().split()) == len(list(cpu_extension.SOURCES.glob("*.cpp")))
    assert len(list((fresh / "cache").glob("*.so"))) == 1


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

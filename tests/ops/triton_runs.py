"""How Triton kernels are tested: in its interpreter, through its compiler for GPUs that are not there, on one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available()

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
on_gpu = pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA GPU, and the interpreter off")
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")


def interpret(file: str) -> None:
    """Runs the tests of a file that are called ``test_interpreted_…`` in a process with the interpreter on.

    It has to be on before Triton is imported. By hand: ``TRITON_INTERPRET=1 pytest`` and the file.
    """
    # No GPU there, so that none of them runs as anything but interpreted.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Frameworks that these tests do not need take longer to import than all else.
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('mmengine', 'timm', 'transformers'))); "
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "-p", "no:cacheprovider", "-k", "test_interpreted", file]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    summary = result.stdout.strip().splitlines()[-1:]
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in summary[0] and " skipped" not in summary[0], summary


def _prepare_once_a_launch() -> None:
    """Makes the interpreter prepare Triton's language once a launch, not at each call of a function within a kernel.

    It walks through all of it each time, which took most of the tests' time.
    """
    from triton.runtime import interpreter

    prepare, launch, prepared = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def prepare_once(function):
        # A module's view of the language.
        view = id(function.__globals__)
        if view in prepared:
            return None
        prepared.add(view)
        return prepare(function)

    def launch_anew(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = prepare_once, launch_anew


if INTERPRETED:
    _prepare_once_a_launch()


def compile_launches(monkeypatch: pytest.MonkeyPatch, folder: Path, capability: int) -> list[tuple[str, Any]]:
    """From now on a launch compiles its kernel, as for its arguments, and does not run it.

    Args:
        monkeypatch: Ends that.
        folder: Where Triton keeps what it compiles.
        capability: Of the GPU, as one number: 90.

    Returns:
        Name of the kernel and what was compiled, of each launch; filled as they come.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction, mangle_type

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        pytest.skip(f"Triton {triton.__version__} describes a launch in another way, from 3.3 on it is this")
    compiled = []

    def compile_instead(kernel, *args, grid, warmup, num_warps, maxnreg=None, **constants):
        signature, constexprs, attributes = {}, {}, {}
        values = dict(zip([p.name for p in kernel.params], args)) | constants
        for i, p in enumerate(kernel.params):
            value = values[p.name]
            # As at a launch: an integer of 1 becomes a constant, multiples of 16 and aligned addresses are made use of.
            free = not p.do_not_specialize
            if p.is_constexpr or (type(value) is int and value == 1 and free):
                signature[p.name], constexprs[(i,)] = "constexpr", value
                continue
            signature[p.name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0 and free):
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constexprs, attributes)
        options = dict(num_warps=num_warps, maxnreg=maxnreg)
        result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        compiled.append((kernel.__name__, result))

    monkeypatch.setattr(JITFunction, "run", compile_instead)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    return compiled

"""Compiles what was recorded for a GPU that need not be there, and reads what came out."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.kernel_report.record import Launch

_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Binary:
    """A compiled kernel.

    Attributes:
        registers: Of a thread.
        stack_bytes: Of a thread; arrays that cannot live in registers, and spills.
        spill_bytes: Stored and loaded for want of registers, by a thread, counted once where they stand in the code.
        shared_bytes: Of a program.
        warps: Of a program.
        ptx: The code that ptxas was given.
        sass: The machine code as text.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    ptx: str
    sass: str


def missing_tools() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        from triton import knobs
        from triton.runtime.jit import JITFunction

        if not hasattr(JITFunction, "_pack_args"):
            return "this Triton is too old to be asked what it would compile: install triton>=3.6"
        tools = {name: getattr(knobs.nvidia, name) for name in ("ptxas", "ptxas_blackwell", "cuobjdump")}
        absent = [name for name, tool in tools.items() if not os.access(tool.path, os.X_OK)]
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"Triton's compiler for NVIDIA GPUs is not here: {error}"
    return f"Triton's {', '.join(absent)} cannot be run" if absent else None


def compile_launch(launch: Launch, capability: int) -> Binary:
    """The machine code of a launch for a compute capability, from Triton's cache where it is there.

    Raises:
        RuntimeError: The kernel does not compile; the message names it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.function(), launch.signature, launch.constants, launch.attributes)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    except Exception as error:
        raise RuntimeError(f"{launch.name} does not compile for sm_{capability}: {error}") from error
    frame, spill_stores, spill_loads, registers = _sizes(
        _kept(compiled, "ptxas.log", lambda: _ptxas_log(compiled, capability))
    )
    return Binary(
        registers=registers,
        stack_bytes=frame,
        spill_bytes=spill_stores + spill_loads,
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        ptx=compiled.asm["ptx"],
        sass=_kept(compiled, "cuobjdump.sass", lambda: _disassembled(compiled.asm["cubin"])),
    )


def _sizes(log: str) -> tuple[int, int, int, int]:
    frame, registers = _FRAME.search(log), _REGISTERS.search(log)
    if frame is None or registers is None:
        raise RuntimeError(f"ptxas -v says nothing of registers and spills: {log}")
    bytes_of_frame, stores, loads = map(int, frame.groups())
    return bytes_of_frame, stores, loads, int(registers[1])


def _kept(compiled: Any, name: str, make: Callable[[], str]) -> str:
    """What ``make`` says, kept beside the kernel in Triton's cache."""
    from triton.runtime.cache import get_cache_manager

    cache = get_cache_manager(compiled.hash)
    file = cache.get_file(name)
    if file is not None:
        return Path(file).read_text()
    text = make()
    cache.put(text, name, binary=False)
    return text


def _ptxas_log(compiled: Any, capability: int) -> str:
    """What ``ptxas -v`` says; Triton throws it away, so it is asked once more."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        flags = ["-v", "-lineinfo", f"--gpu-name={sm_arch_from_capability(capability)}"]
        command = [get_ptxas(capability).path, *flags, str(source), "-o", str(Path(folder, "kernel.cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

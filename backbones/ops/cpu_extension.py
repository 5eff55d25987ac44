"""Compiles `csrc` for the processor at hand and loads it: once a machine, when the backend is first asked for.

The result is a plain shared library with a C interface, so that a change of Python or of PyTorch's bindings is no
reason to build again. It runs on PyTorch's own threads.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from backbones.ops import library_cache

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")
TUNING = "-march=native"
LIBRARY = "defocus.so"
# A library without the tuning, made because the compiler failed with it, serves so long. Then that is tried again.
UNTUNED_SECONDS = 86_400
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

logger = logging.getLogger("backbones")


class NoCompiler(RuntimeError):
    """There is no C++ compiler here whose library PyTorch could load; the message says what to do."""


@dataclass(frozen=True)
class Compiler:
    """A compiler that was asked what it is.

    Attributes:
        command: Its words.
        tuning: The flags that fit its code to this processor, as far as it knows them.
        key: Differs between versions, C++ ABIs and targets.
    """

    command: tuple[str, ...]
    tuning: tuple[str, ...]
    key: str


def refusal(device_type: str) -> str | None:
    """Why the `cpu` backends cannot serve a device type, or None. Builds where that has not been done."""
    if device_type != "cpu":
        return f"runs on cpu, not on {device_type}"
    return _build()[1]


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: It cannot be built here; the message says why.
    """
    loaded, reason = _build()
    if loaded is None:
        raise RuntimeError(f"the cpu backend cannot be built: {reason}")
    return loaded


def call(function: str, arguments: ctypes.Structure) -> None:
    """Runs a function of the library.

    Raises:
        RuntimeError: The library cannot be built, or memory ran out.
    """
    if getattr(library(), function)(ctypes.byref(arguments)):
        raise RuntimeError(f"{function}: not enough memory for its working space; take a smaller batch")


def compiler() -> Compiler:
    """The compiler that ``CXX`` names, or the first of `COMPILERS` that fits PyTorch.

    Raises:
        NoCompiler: There is none.
        RuntimeError: The one that is taken does not work.
    """
    named = os.environ.get("CXX")
    reasons = []
    for command in [shlex.split(named)] if named else [[name] for name in COMPILERS if shutil.which(name)]:
        if shutil.which(command[0]) is None:
            reasons.append(f"CXX={named!r} is not found")
            continue
        tuning, macros = _describe(command)
        if " __clang__ " in macros and not _pytorch_runs_on_llvm_openmp():
            reasons.append(
                f"{shlex.join(command)} is clang, which builds for LLVM's OpenMP; this PyTorch runs on another, and "
                "two in one process disturb each other"
            )
            continue
        return Compiler(tuple(command), tuning, _digest(shlex.join(command), macros)[:8])
    missing = "; ".join(reasons) or f"no C++ compiler found ({', '.join(COMPILERS)})"
    raise NoCompiler(f"{missing}; install one (Debian, Ubuntu: apt install g++) or name one in CXX")


def _describe(command: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The tuning that a compiler knows, and the macros that it then defines: version, ABI, target."""
    for tuning in ((TUNING,), ()):
        asked = [*command, *FLAGS, *tuning, "-dM", "-E", "-x", "c++", os.devnull]
        result = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode == 0:
            return tuning, result.stdout
    raise RuntimeError(f"{shlex.join(command)} does not work:\n{_first_lines(result.stdout)}")


def _pytorch_runs_on_llvm_openmp() -> bool:
    # A handle finds the symbols of a library and of what it is linked with, and of nothing else in the process.
    return hasattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")), "__kmpc_fork_call")


@functools.cache
def _build() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason there is none. That is logged once, with what to do about it."""
    try:
        return _load(_compiled()), None
    except (OSError, RuntimeError) as error:
        logger.warning("the compiled CPU kernels are not available, plain PyTorch is slower: %s", error)
        return None, str(error)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(
            f"the library does not load ({error}); {library_cache.VARIABLE} names another folder"
        ) from error


def _compiled() -> Path:
    """Path of the library of this machine, built if it is in no cache."""
    folders = library_cache.folders()
    wanted = f"defocus-{_surroundings()}"
    try:
        present = compiler()
    except NoCompiler:
        # What a compiler built for this very machine and PyTorch serves without it.
        for folder in folders:
            if path := library_cache.find(folder, wanted):
                return path
        raise
    stem = f"{wanted}-{present.key}"
    for folder in folders:
        if path := _find(folder, stem):
            return path
    unusable = []
    for folder in folders:
        try:
            with library_cache.workspace(folder) as build:
                # Another process may have built it while this one waited.
                path = _find(folder, stem) or _add(present, build, folder, stem)
        except library_cache.UnusableFolder as error:
            unusable.append(str(error))
            continue
        if unusable:
            logger.warning(
                "%s: the CPU kernels are kept in %s, which the system may empty; %s names a folder that stays",
                *("; ".join(unusable), folder, library_cache.VARIABLE),
            )
        return path
    reasons = "; ".join(unusable) or "there is no folder for it"
    raise RuntimeError(f"cannot keep the library: {reasons}; set {library_cache.VARIABLE} to a writable folder")


def _surroundings() -> str:
    """Differs where the same compiler makes another library: sources, PyTorch, processor."""
    sources = [file.read_bytes() for file in sorted(SOURCES.iterdir())]
    abi = torch.compiled_with_cxx11_abi()
    return _digest(*FLAGS, torch.__version__, str(abi), platform.machine(), _processor(), *sources)[:16]


def _processor() -> str:
    """Tells processors apart whose instructions differ."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()


def _find(folder: Path, stem: str) -> Path | None:
    """The library of a compiler, tuned to the processor or, for a day after that failed, not."""
    if path := library_cache.find(folder, f"{stem}-tuned"):
        return path
    path = library_cache.find(folder, f"{stem}-untuned")
    if path is None or time.time() - path.stat().st_mtime > UNTUNED_SECONDS:
        return None
    logger.warning("%s was built without %s, which had failed, and is slower; delete it to try again", path, TUNING)
    return path


def _add(present: Compiler, build: Path, folder: Path, stem: str) -> Path:
    """Compiles into ``build`` and moves the library into a cache."""
    logger.info("compiling the CPU kernels into %s, once: about 20 seconds", folder)
    command = shlex.join(present.command)
    # The files together may have taken more memory than there is: the second attempt compiles one after the other.
    message = _compile(present, present.tuning, build) and _compile(present, present.tuning, build, together=False)
    if not message:
        return library_cache.keep(build / LIBRARY, folder, f"{stem}-tuned")
    if present.tuning and not _compile(present, (), build, together=False):
        logger.warning(
            "%s failed with %s: the CPU kernels were built without and are slower; it is tried again in a day:\n%s",
            *(command, TUNING, message),
        )
        return library_cache.keep(build / LIBRARY, folder, f"{stem}-untuned")
    raise RuntimeError(f"{command} failed; a recent g++ is known to work, CXX names another:\n{message}")


def _compile(present: Compiler, tuning: Sequence[str], build: Path, together: bool = True) -> str:
    """Builds `LIBRARY` in a folder, and returns what the compiler or the loader has against it, or an empty string."""
    torch_dir = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    compiling = [*present.command, *FLAGS, *tuning, abi, f"-I{torch_dir / 'include'}", "-c"]
    objects = {str(build / f"{source.stem}.o"): str(source) for source in sorted(SOURCES.glob("*.cpp"))}
    # Not linked with -fopenmp: PyTorch's OpenMP, wherever it is from, is to be the only one in the process.
    libraries = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
    steps = [
        [[*compiling, source, "-o", output] for output, source in objects.items()],
        [[*present.command, "-shared", *objects, *libraries, "-o", str(build / LIBRARY)]],
    ]
    for commands in steps:
        if message := _run(commands, together):
            return message
    try:
        ctypes.CDLL(str(build / LIBRARY))
    except OSError as error:
        return f"what it made does not load: {error}"
    return ""


def _run(commands: Sequence[Sequence[str]], together: bool) -> str:
    """Runs commands, side by side or one by one, and returns how what the first that failed wrote begins."""
    at_once = len(commands) if together else 1
    for start in range(0, len(commands), at_once):
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            for command in commands[start : start + at_once]
        ]
        outputs = [process.communicate()[0] for process in processes]
        for process, output in zip(processes, outputs):
            if process.returncode:
                return _first_lines(output) or f"no message, status {process.returncode}"
    return ""


def _first_lines(text: str) -> str:
    return "\n".join(text.splitlines()[:8])

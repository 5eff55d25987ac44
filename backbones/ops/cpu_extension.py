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
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")
# Tried in this order: not every compiler knows the processor it runs on.
TUNINGS = (("-march=native",), ())
CACHE_VARIABLE = "DEFOCUS_CACHE_DIR"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

logger = logging.getLogger("backbones")


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


@functools.cache
def _build() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason there is none. That is logged once, with what to do about it."""
    try:
        return ctypes.CDLL(str(_compiled())), None
    except (OSError, RuntimeError) as error:
        logger.warning("the compiled CPU kernels are not available, plain PyTorch is slower: %s", error)
        return None, str(error)


def _compiled() -> Path:
    """Path of the library of this machine, built if it is not in the cache."""
    compiler, version = _compiler()
    sources = sorted(SOURCES.glob("*.cpp"))
    key = hashlib.sha256()
    for part in (*FLAGS, *TUNINGS, version, torch.__version__, platform.machine(), _processor()):
        key.update(f"{part}\n".encode())
    for file in sorted(SOURCES.iterdir()):
        key.update(file.read_bytes())
    cache = _cache_dir()
    target = cache / f"defocus-{key.hexdigest()[:20]}.so"
    if target.exists():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_suffix(".lock")):
            if not target.exists():
                logger.info("compiling the CPU kernels into %s, once: about 20 seconds", cache)
                _compile(compiler, sources, target)
    except OSError as error:
        raise RuntimeError(f"cannot write the cache: {error}; set {CACHE_VARIABLE} to a writable folder") from error
    return target


def _compiler() -> tuple[list[str], str]:
    """The C++ compiler, as a command, and what it says about its version."""
    named = os.environ.get("CXX")
    command = shlex.split(named) if named else [next(filter(None, map(shutil.which, COMPILERS)), "")]
    if not command[0] or shutil.which(command[0]) is None:
        missing = f"CXX={named!r} is not found" if named else f"no C++ compiler found ({', '.join(COMPILERS)})"
        raise RuntimeError(f"{missing}; install one (Debian, Ubuntu: apt install g++) or name one in CXX")
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return command, " ".join(command) + result.stdout


def _processor() -> str:
    """Tells processors apart whose instructions differ."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _cache_dir() -> Path:
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "defocus"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process build while others wait. Ends with its process, so that no dead one holds it."""
    try:
        import fcntl
    except ImportError:
        # Without locks several processes may build: the last result replaces the others, which are equal.
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: Sequence[str], sources: Sequence[Path], target: Path) -> None:
    """Builds in a folder of its own and renames at the end: what is in the cache is whole."""
    torch_dir = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    for tuning in TUNINGS:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
            objects = [f"{folder}/{source.stem}.o" for source in sources]
            command = [
                *compiler,
                *FLAGS,
                *tuning,
                f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
                f"-I{torch_dir / 'include'}",
                "-c",
            ]
            compiling = [[*command, str(source), "-o", output] for source, output in zip(sources, objects)]
            # Not linked with -fopenmp: PyTorch's OpenMP, wherever it is from, is to be the only one in the process.
            libraries = [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10"]
            built = f"{folder}/{target.name}"
            message = _run(compiling) or _run([[*compiler, "-shared", *objects, *libraries, "-o", built]])
            if not message:
                os.replace(built, target)
                return
    first_lines = "\n".join(message.splitlines()[:8])
    raise RuntimeError(f"{' '.join(compiler)} failed; a recent g++ is known to work, CXX names another:\n{first_lines}")


def _run(commands: Sequence[Sequence[str]]) -> str:
    """Runs commands side by side and returns what the first that failed wrote, or an empty string."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    failed = [output or "no message" for process, output in zip(processes, outputs) if process.returncode]
    return failed[0] if failed else ""

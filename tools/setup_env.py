"""Makes the environment of `make demo` and `make test`, of `make demo-hf`, or of `make app`; nothing if it is complete.

Runs with the system's Python and its standard library alone.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
FREE_GIB = 12
PYTHONS = ((3, 10), (3, 13))
TRANSFORMERS_PYTHON = (3, 11)
# What each of mmcv's files begins with.
MMCV_HEADER = "#include <torch/types.h>\n"
# Prints the flags that PyTorch's BuildExtension adds and that differ, one a line. PyTorch 2.6 still names ABIs.
TORCH_FLAGS = """
import shlex, sysconfig
from torch.utils import cpp_extension as torch
print(*(f"-I{path}" for path in [*torch.include_paths(), sysconfig.get_path("include")]), sep="\\n")
if hasattr(torch.BuildExtension, "_add_gnu_cpp_abi_flag"):
    abis = torch._get_glibcxx_abi_build_flags() + torch._get_pybind11_abi_build_flags()
    print(*shlex.split(" ".join(abis)), sep="\\n")
"""


def main() -> None:
    """Makes the environment, or ends with what the machine lacks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, help="folder of the virtual environment")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--transformers", action="store_true", help="with transformers instead of mmdet and mmseg, which are compiled"
    )
    kinds.add_argument("--app", action="store_true", help="the same with gradio, for tools/app.py")
    arguments = parser.parse_args()
    # The file of an environment without mmdet and mmseg.
    listed = "app.txt" if arguments.app else "transformers.txt" if arguments.transformers else None
    venv = arguments.venv.absolute()
    stamp = venv / ".setup-complete"
    wanted = _fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    missing = missing_prerequisites(venv)
    if listed and sys.version_info[:2] < TRANSFORMERS_PYTHON:
        wanted = ".".join(map(str, TRANSFORMERS_PYTHON))
        missing.append(f"transformers needs Python {wanted} or newer: make PYTHON=/path/to/python3.12 ...")
    if missing:
        sys.exit("Set-up cannot start:\n" + "\n".join(f"  - {line}" for line in missing))

    minutes = f"about {2 if listed else 4} minutes on 2 cores"
    print(f"Setting up {venv}: {minutes} and what the downloads take (log: {venv / 'setup.log'})")
    start = time.monotonic()
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    log = (venv / "setup.log").open("w")
    lock = REQUIREMENTS / "lock.txt"
    if listed:
        lock = venv / "constraints.txt"
        lock.write_text(unpinned(REQUIREMENTS / "lock.txt", REQUIREMENTS / listed))
    # Python compiles what is imported when it is; pip would compile all, and most of torch is never imported.
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "-c", lock]
    _step("pip", [python, "-m", "pip", "install", "--upgrade", "pip"], log)
    _step("torch", [*pip, "-r", REQUIREMENTS / "torch.txt"], log)
    if listed:
        _step("transformers, tools for pictures", [*pip, "-r", REQUIREMENTS / listed], log)
    else:
        _install_openmmlab(python, pip, log)
    _step("backbones", [*pip, "--no-build-isolation", "--no-deps", "-e", ROOT], log)
    stamp.write_text(wanted)
    print(f"Set-up done in {(time.monotonic() - start) / 60:.1f} minutes")


def unpinned(lock: Path, requirements: Path) -> str:
    """The lines of a lock less those of packages whose versions a file of requirements says itself."""
    own = {line.partition("==")[0].strip().lower() for line in requirements.read_text().splitlines() if "==" in line}
    lines = lock.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.partition("==")[0].strip().lower() not in own)


def missing_prerequisites(venv: Path) -> list[str]:
    """What the machine lacks for the set-up, each with its cure."""
    missing = []
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        found = sys.version.split()[0]
        wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        missing.append(f"Python {wanted} is needed, this is {found}: make PYTHON=/path/to/python3.12 ...")
    compiler = os.environ.get("CXX") or "c++"
    # It may be a command of several words, such as "ccache g++".
    if shutil.which(shlex.split(compiler)[0]) is None:
        needed = "which our kernels and mmcv's operators need"
        missing.append(f"no C++ compiler ({compiler}), {needed}: install g++ or clang, or set CXX")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        missing.append(f"Python's headers are not installed ({header}): install python3-dev")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        missing.append("Python's venv module is not installed: install python3-venv")
    # What exists of the environment already is not needed again.
    if not (venv / "lib").is_dir():
        parent = next(p for p in venv.parents if p.exists())
        free = shutil.disk_usage(parent).free / 2**30
        if free < FREE_GIB:
            missing.append(f"{FREE_GIB} GiB of disk are needed at {parent}, {free:.1f} are free")
    return missing


def _fingerprint() -> str:
    """Changes with the requirements and with where the project lies (it is installed in place)."""
    digest = hashlib.sha256(str(ROOT).encode() + sys.version.encode())
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _mmcv_environment(python: Path) -> dict[str, str]:
    """Tells mmcv whether to build its CUDA operators, and tells the user."""
    probe = "import torch; print(torch.cuda.is_available(), (torch.version.cuda or '').split('.')[0])"
    gpu, cuda = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    environment = dict(os.environ, MMCV_WITH_OPS="1")
    if gpu != "True":
        # Without a GPU mmcv builds for the CPU by itself.
        return environment
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    release = re.search(r"release (\d+)\.", version)
    if release and release[1] == cuda.strip():
        environment["FORCE_CUDA"] = "1"
        print("GPU and nvcc found: mmcv's CUDA operators are built too")
        return environment
    why = f"nvcc is CUDA {release[1]}, torch is CUDA {cuda.strip()}" if release else "there is no nvcc"
    print(f"Notice: a GPU is there but {why}; mmcv's operators are built for the CPU, and the demo runs on the CPU")
    environment["FORCE_CUDA"] = "0"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _install_openmmlab(python: Path, pip: list, log) -> None:
    """Compiles mmcv into a wheel, installs meanwhile what does not need it, and then the wheel."""
    listed = (REQUIREMENTS / "openmmlab.txt").read_text().splitlines()
    names = [line for line in listed if line and not line.startswith("#")]
    mmcv = next(name for name in names if name.startswith("onedl-mmcv"))
    names.remove(mmcv)
    environment = _mmcv_environment(python)
    with tempfile.TemporaryDirectory(prefix="mmcv-wheel-") as wheels:
        # pip keeps what it compiled for the next time, and does not ask for which torch that was.
        build = [
            python,
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-deps",
            "--no-cache-dir",
            "--no-build-isolation",
            "-w",
            wheels,
        ]
        packages = [*pip, "--no-build-isolation", *names, "-r", REQUIREMENTS / "dev.txt"]
        with _meanwhile("mmdet, mmseg, tools for tests", packages, log, environment):
            install_mmcv(python, [*build, mmcv], environment, log)
        _step("mmcv's wheel", [*pip, *Path(wheels).glob("*.whl")], log)


@contextlib.contextmanager
def _meanwhile(title: str, command: list, log, environment: dict[str, str]) -> Iterator[None]:
    """Runs a command beside the body of ``with``, and says at its end how it went.

    Its output goes to a log of its own, and only at the end to ``log``.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        words = [str(part) for part in command]
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        try:
            yield
            print(f"  {title} ...", flush=True)
            failed = process.wait() != 0
        finally:
            process.kill()
            process.wait()
            output.seek(0)
            lines = output.readlines()
            log.writelines(lines)
            log.flush()
        if failed:
            _fail(title, log, lines[-15:])
        print("    done (beside mmcv)", flush=True)


def install_mmcv(python: Path, command: list, environment: dict[str, str], log) -> None:
    """Compiles mmcv, with a precompiled header or plainly where that is refused.

    Args:
        python: Of the virtual environment, which has torch.
        command: Installs mmcv from its source, or makes a wheel of it. Verbose, because the compiler's [n/m] lines are
            the progress.
        environment: As of `_mmcv_environment`.
        log: A file for what it prints.
    """
    with tempfile.TemporaryDirectory(prefix="mmcv-header-") as folder:
        flags = None
        # Not where nvcc takes part, which hands the compiler flags of its own.
        if environment.get("FORCE_CUDA") != "1":
            flags = precompile_header(python, Path(folder), environment)
        built = flags is not None and _step("mmcv", command, log, dict(environment, CFLAGS=flags), may_fail=True)
    if not built:
        print("  no precompiled header with this compiler: mmcv takes about 10 minutes", flush=True)
        _step("mmcv", command, log, environment)


def precompile_header(python: Path, folder: Path, environment: dict[str, str]) -> str | None:
    """Compiles what each of mmcv's files begins with, PyTorch's headers, once.

    A compiler takes a precompiled header only where all flags are those that it was made with, and reads the plain one
    otherwise, without a word. Here that says `#error`, so that a refusal ends a build at its first file.

    Args:
        python: The environment's, with torch and setuptools.
        folder: Where to leave the header, which has to stay while mmcv is built.
        environment: Of the build; one with CFLAGS of its own is left alone.

    Returns:
        ``CFLAGS`` for the build, which setuptools takes instead of Python's own; None if the compiler is not GCC or
        does not take the header.
    """
    compiler = shlex.split(environment.get("CXX", "c++"))
    macros = subprocess.run([*compiler, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True)
    if macros.returncode or "__clang__" in macros.stdout or "__GNUC__" not in macros.stdout or "CFLAGS" in environment:
        return None
    header = folder / "precompiled.h"
    # As Python's own flags, without debug symbols, which take half of the time, and without warnings. At -O2 RoIAlign's
    # backward would take a third longer.
    cflags = "-DNDEBUG -fwrapv -O3 -g0 -w"
    # What PyTorch's BuildExtension and mmcv's setup.py add.
    added = "-fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext"
    found = subprocess.run([python, "-c", TORCH_FLAGS], capture_output=True, text=True)
    compile_ = [*compiler, *cflags.split(), *added.split(), *found.stdout.splitlines()]
    header.write_text(MMCV_HEADER)
    made = subprocess.run([*compile_, "-x", "c++-header", header, "-o", f"{header}.gch"], capture_output=True)
    header.write_text("#error the precompiled header was refused\n")
    taken = subprocess.run(
        [*compile_, "-include", header, "-fsyntax-only", "-x", "c++", os.devnull], capture_output=True
    )
    if found.returncode or made.returncode or taken.returncode:
        return None
    return f"{cflags} -include {header}"


def _step(title: str, command: list, log, environment: dict[str, str] | None = None, may_fail: bool = False) -> bool:
    """Runs a command, its output to the log, its progress to one line of the terminal.

    Returns:
        Whether it succeeded. Without ``may_fail`` a failure ends the program.
    """
    start = time.monotonic()
    terminal = sys.stdout.isatty()
    print(f"  {title} ...", end="" if terminal else "\n", flush=True)
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=ROOT,
    )
    tail: list[str] = []
    shown = 0
    for line in process.stdout:
        log.write(line)
        log.flush()
        tail = [*tail[-14:], line]
        progress = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if progress and terminal:
            print(f"\r  {title} ... compiling {progress[1]} of {progress[2]}", end="", flush=True)
        elif progress and int(progress[1]) >= shown + 10:
            shown = int(progress[1])
            print(f"    compiled {progress[1]} of {progress[2]}", flush=True)
    failed = process.wait() != 0
    if failed and may_fail:
        return False
    if failed:
        _fail(title, log, tail)
    done = f"done ({time.monotonic() - start:.0f} s)"
    print(f"\r  {title}: {done}{' ' * 24}" if terminal else f"    {done}", flush=True)
    return True


def _fail(title: str, log, tail: list[str]) -> NoReturn:
    sys.exit(
        f"\n{title}: failed. The end of {log.name}:\n{''.join(tail)}"
        "Run the same command again once the cause is mended; what is installed is kept."
    )


if __name__ == "__main__":
    main()

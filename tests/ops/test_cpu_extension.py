"""Building the compiled library, and what goes wrong with compilers, disks and files.

The library here is one small file. That the real one builds is what the tests of the operations need.
"""

import ctypes
import errno
import fcntl
import logging
import multiprocessing
import os
import shlex
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backbones.ops import cpu_extension
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from backbones.ops.selective_scan import DEFOCUS_SCAN
from tests.ops.small_library import COMPILER, answer, libraries, needs_compiler, reason


@pytest.fixture
def warnings(caplog):
    """The messages of warnings so far."""
    caplog.set_level(logging.WARNING, "backbones")
    return lambda: [record.getMessage() for record in caplog.records]


def use_compiler(monkeypatch, path, before=""):
    """Names a script in CXX that notes how it is called, and after ``before`` compiles."""
    path.write_text(f'#!/bin/sh\necho "$*" >> {path}.log\n{before}\nexec {COMPILER} "$@"\n')
    path.chmod(0o755)
    Path(f"{path}.log").touch()
    monkeypatch.setenv("CXX", str(path))
    return lambda: [line for line in Path(f"{path}.log").read_text().splitlines() if " -c " in line]


def test_serves_cpu_only():
    assert cpu_extension.refusal("cuda") == "runs on cpu, not on cuda"


def test_without_compiler_torch_takes_over_with_one_warning(home, monkeypatch, warnings):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert DEFOCUS_SCAN.select("cpu").name == "torch"
    assert CAUSAL_CONV1D.select("cpu").name == "torch"
    (message,) = warnings()
    assert "CXX='no-such-compiler' is not found; install one" in message
    with pytest.raises(RuntimeError, match="'cpu' cannot run on cpu: CXX='no-such-compiler' is not found"):
        DEFOCUS_SCAN.select("cpu", "cpu")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(home))
    assert "no C++ compiler found (c++, g++, clang++); install one" in reason()


@needs_compiler
def test_without_compiler_the_library_in_the_cache_serves(home, monkeypatch):
    assert answer() == 42
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert answer() == 42
    # One of other sources does not.
    (home / "csrc" / "answer.cpp").write_text('extern "C" int answer() { return 43; }\n')
    assert "CXX='no-such-compiler' is not found" in reason()


def test_failed_compile_says_what_the_compiler_said(home, monkeypatch):
    use_compiler(monkeypatch, home / "cxx", 'case "$*" in *" -c "*) echo "fatal error: too old" >&2; exit 1;; esac')
    assert "fatal error: too old" in reason()
    # What is half built never looks like a library.
    assert [path.name for path in (home / "cache").iterdir()] == [".lock"]


def test_a_compiler_that_does_not_even_start_says_so(home, monkeypatch):
    use_compiler(monkeypatch, home / "cxx", "echo no licence; exit 3")
    assert "cxx does not work:\nno licence" in reason()


@needs_compiler
def test_the_key_holds_sources_compiler_and_abi(home, monkeypatch):
    abi = torch.compiled_with_cxx11_abi()
    compiled = use_compiler(monkeypatch, home / "cxx", f'[ -e {home}/newer ] && set -- "$@" -D__VERSION__=99')
    changes = (
        lambda: None,
        lambda: (home / "csrc" / "answer.cpp").write_text('extern "C" int answer() { return 43; }\n'),
        lambda: (home / "csrc" / "vec.h").write_text("// a header\n"),
        lambda: (home / "newer").touch(),
        lambda: monkeypatch.setattr(torch, "compiled_with_cxx11_abi", lambda: not abi),
        lambda: monkeypatch.setattr(torch, "__version__", "9.9"),
        lambda: monkeypatch.setattr(cpu_extension, "_processor", lambda: "flags: fpu"),
    )
    # Nothing, a source, a header, the compiler, the ABI of C++, PyTorch, the processor: each is one build more.
    for builds, change in enumerate(changes, 1):
        change()
        for _ in range(2):
            assert answer() == (42 if builds == 1 else 43)
        assert len(compiled()) == len(libraries(home / "cache")) == builds


@needs_compiler
def test_several_processes_build_once(home, monkeypatch):
    # Slow enough that the others come meanwhile.
    compiled = use_compiler(monkeypatch, home / "cxx", 'case "$*" in *" -c "*) sleep 1;; esac')
    context = multiprocessing.get_context("fork")
    together = [context.Process(target=answer) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0, 0]
    assert len(compiled()) == len(libraries(home / "cache")) == 1


@needs_compiler
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks(home, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert answer() == 42
    assert len(libraries(home / "cache")) == 1


KILLED = 'echo "fatal error: Killed signal terminated program" >&2; exit 1'


@needs_compiler
def test_a_compiler_killed_once_still_tunes(home, monkeypatch, warnings):
    script = f'case "$*" in *" -c "*) if mkdir {home}/once; then {KILLED}; fi;; esac'
    compiled = use_compiler(monkeypatch, home / "cxx", script)
    assert answer() == 42
    assert ["-march=native" in line for line in compiled()] == [True, True]
    assert "-tuned-" in libraries(home / "cache")[0].name and not warnings()


@needs_compiler
def test_the_second_attempt_compiles_one_file_at_a_time(home, monkeypatch):
    (home / "csrc" / "other.cpp").write_text("int other() { return 1; }\n")
    # Fails where another compiler runs.
    script = (
        f'case "$*" in *" -c "*) if ! mkdir {home}/busy 2>/dev/null; then {KILLED}; fi; sleep 0.3; '
        f'{COMPILER} "$@"; rmdir {home}/busy; exit 0;; esac'
    )
    compiled = use_compiler(monkeypatch, home / "cxx", script)
    assert answer() == 42
    assert ["-march=native" in line for line in compiled()] == [True] * 4


@needs_compiler
def test_an_untuned_library_is_said_each_time_and_replaced(home, monkeypatch, warnings):
    script = f'case "$*" in *"-march=native"*" -c "*) if ! [ -e {home}/mended ]; then {KILLED}; fi;; esac'
    compiled = use_compiler(monkeypatch, home / "cxx", script)
    assert answer() == 42
    (message,) = warnings()
    assert "failed with -march=native" in message and "Killed signal" in message
    # The next process does not compile, and does not keep quiet either.
    (library,) = libraries(home / "cache")
    before = len(compiled())
    assert answer() == 42
    assert len(compiled()) == before and f"{library} was built without -march=native" in warnings()[1]
    # A day after, although it was used meanwhile, it is tried again.
    (home / "mended").touch()
    os.utime(library, (time.time(), time.time() - 90_000))
    assert answer() == 42
    assert len(compiled()) == before + 1 and len(warnings()) == 2
    assert {path.name.split("-")[3] for path in libraries(home / "cache")} == {"tuned", "untuned"}
    assert answer() == 42 and len(warnings()) == 2


@needs_compiler
def test_a_compiler_that_knows_no_tuning_is_content_without(home, monkeypatch, warnings):
    use_compiler(monkeypatch, home / "cxx", 'case "$*" in *-march=native*) echo "unknown value"; exit 1;; esac')
    assert answer() == 42
    assert "-tuned-" in libraries(home / "cache")[0].name and not warnings()


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "changed"])
def test_a_damaged_library_is_built_again(home, damage, warnings):
    assert answer() == 42
    (library,) = libraries(home / "cache")
    whole = library.read_bytes()
    # Another file, for this process has the first one mapped.
    library.unlink()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    library.write_bytes({"truncated": whole[:middle], "empty": b"", "changed": changed}[damage])
    assert answer() == 42
    assert libraries(home / "cache") == [library] and library.read_bytes() == whole
    assert warnings() == [f"{library} is damaged and is not loaded"]


@needs_compiler
def test_a_library_that_does_not_load_is_not_kept(home):
    source = 'extern "C" int nowhere();\nextern "C" int answer() { return nowhere(); }\n'
    (home / "csrc" / "answer.cpp").write_text(source)
    assert "does not load" in reason() and "undefined symbol: nowhere" in reason()
    assert not libraries(home / "cache")


def mount_read_only(monkeypatch, folder):
    """Lets what would write below a folder fail as on a disk mounted for reading; permissions do not stop root."""

    def refused(function, reads=lambda *_, **__: False):
        def call(path, *args, **kwargs):
            if Path(path).is_relative_to(folder) and not reads(*args, **kwargs):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *args, **kwargs)

        return call

    for name in ("mkdir", "unlink", "replace", "rename", "utime"):
        monkeypatch.setattr(os, name, refused(getattr(os, name)))
    monkeypatch.setattr(Path, "open", refused(Path.open, lambda mode="r", *_, **__: mode.startswith("r")))


@needs_compiler
def test_a_read_only_cache_serves_what_it_has(home, monkeypatch, warnings):
    compiled = use_compiler(monkeypatch, home / "cxx")
    assert answer() == 42
    mount_read_only(monkeypatch, home / "cache")
    assert answer() == 42
    assert len(compiled()) == 1 and not warnings() and not list((home / "tmp").iterdir())


@needs_compiler
@pytest.mark.parametrize("kind", ["read only", "a file in its way", "no home"])
def test_a_cache_that_cannot_be_written_is_said_once(home, monkeypatch, warnings, kind):
    compiled = use_compiler(monkeypatch, home / "cxx")
    if kind == "read only":
        (home / "cache").mkdir()
        mount_read_only(monkeypatch, home / "cache")
    elif kind == "a file in its way":
        (home / "cache").write_text("")
    else:
        monkeypatch.setenv("DEFOCUS_CACHE_DIR", "~no-such-user/cache")
    assert answer() == 42
    assert answer() == 42
    temporary = home / "tmp" / f"defocus-{os.getuid()}"
    assert len(compiled()) == len(libraries(temporary)) == 1
    assert temporary.stat().st_mode & 0o777 == 0o700
    if kind != "no home":
        (message,) = warnings()
        assert f"{home / 'cache'} cannot be written" in message and f"kept in {temporary}" in message


@needs_compiler
def test_a_temporary_folder_of_another_is_not_trusted(home, monkeypatch):
    assert answer() == 42
    (library,) = libraries(home / "cache")
    temporary = home / "tmp" / f"defocus-{os.getuid()}"
    temporary.mkdir()
    temporary.chmod(0o777)
    library.rename(temporary / library.name)
    (home / "cache" / ".lock").unlink()
    (home / "cache").rmdir()
    (home / "cache").write_text("")
    assert f"{temporary} is another user's, or others can write it" in reason()
    temporary.chmod(0o700)
    assert answer() == 42


def fake_clang(path):
    path.write_text('#!/bin/sh\ncase "$*" in *-dM*) echo "#define __clang__ 1";; *) touch "$0.used";; esac\n')
    path.chmod(0o755)


def test_clang_is_refused_where_pytorch_runs_on_another_openmp(home, monkeypatch):
    if cpu_extension._pytorch_runs_on_llvm_openmp():
        pytest.skip("this PyTorch runs on LLVM's OpenMP")
    fake_clang(home / "clang++")
    monkeypatch.setenv("CXX", str(home / "clang++"))
    assert "is clang, which builds for LLVM's OpenMP; this PyTorch runs on another" in reason()
    assert not (home / "clang++.used").exists() and not libraries(home / "cache")


@needs_compiler
def test_clang_is_passed_over_for_a_compiler_that_fits(home, monkeypatch):
    if cpu_extension._pytorch_runs_on_llvm_openmp():
        pytest.skip("this PyTorch runs on LLVM's OpenMP")
    fake_clang(home / "c++")
    (home / "g++").write_text(f'#!/bin/sh\nexport PATH={os.environ["PATH"]}\nexec {COMPILER} "$@"\n')
    (home / "g++").chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    assert answer() == 42
    assert cpu_extension.compiler().command == ("g++",)


def test_clang_serves_a_pytorch_of_its_openmp(home, monkeypatch):
    """Seen in the symbols that PyTorch's library can call."""
    fake_clang(home / "clang++")
    monkeypatch.setenv("CXX", str(home / "clang++"))
    opened, library = [], SimpleNamespace(**{"__kmpc_fork_call": None})
    monkeypatch.setattr(ctypes, "CDLL", lambda path: opened.append(path) or library)
    assert shlex.join(cpu_extension.compiler().command) == str(home / "clang++")
    assert opened == [str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")]

"""The precompiled header of the set-up: taken, refused, and what is done then."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.testing import load_tool

setup_env = load_tool("setup_env")


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """The compiler, and the CFLAGS that name a header precompiled by it.

    The header is a small one of PyTorch's, with ALL_HEADERS=1 that of mmcv, which takes half a minute.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(shlex.split(compiler)[0]) is None:
        pytest.fail("there is no C++ compiler, which the set-up needs")
    environment = {name: value for name, value in os.environ.items() if name != "CFLAGS"}
    with pytest.MonkeyPatch.context() as patch:
        if "ALL_HEADERS" not in os.environ:
            patch.setattr(setup_env, "MMCV_HEADER", "#include <c10/core/ScalarType.h>\n")
        flags = setup_env.precompile_header(Path(sys.executable), tmp_path_factory.mktemp("header"), environment)
    if flags is None:
        pytest.skip("this compiler takes no precompiled header")
    return compiler, flags


def compile_with(header, flags, folder):
    """Compiles a file of mmcv's kind that relies on what the header includes, and says how that went."""
    source = folder / "operator.cpp"
    source.write_text("unsigned long size(c10::ScalarType type) { return c10::elementSize(type); }\n")
    added = "-fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext"
    words = [*shlex.split(header[0]), *shlex.split(flags), *added.split(), "-c", source, "-o", folder / "operator.o"]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def test_the_header_is_taken_as_the_build_calls_the_compiler(header, tmp_path):
    # No include folder is named: the file compiles from the precompiled header or not at all.
    result = compile_with(header, header[1], tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "operator.o").stat().st_size > 0


def test_a_header_of_other_flags_ends_the_build(header, tmp_path):
    result = compile_with(header, header[1].replace("-O3", "-O0 -ffast-math"), tmp_path)
    assert result.returncode != 0 and "the precompiled header was refused" in result.stderr


def test_no_header_for_another_compiler_nor_beside_flags_of_the_user(tmp_path):
    clang = tmp_path / "clang++"
    clang.write_text("#!/bin/sh\necho '#define __GNUC__ 4'; echo '#define __clang__ 1'\n")
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\necho '#define __GNUC__ 12'\ncase $* in *c++-header*) exit 1;; esac\n")
    for compiler in (clang, broken):
        compiler.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "CXX": f"env {compiler}"}
        assert setup_env.precompile_header(Path(sys.executable), tmp_path, environment) is None
    environment = {"PATH": os.environ["PATH"], "CFLAGS": "-O3"}
    assert setup_env.precompile_header(Path(sys.executable), tmp_path, environment) is None


def test_set_up_is_made_again_when_requirements_change(tmp_path, monkeypatch):
    """What is complete by the stamp is left alone; other requirements, or another place, make another stamp."""
    requirements, venv = tmp_path / "requirements", tmp_path / "venv"
    requirements.mkdir()
    venv.mkdir()
    (requirements / "torch.txt").write_text("torch==2.11.0\n")
    monkeypatch.setattr(setup_env, "REQUIREMENTS", requirements)
    monkeypatch.setattr(sys, "argv", ["setup_env.py", str(venv)])
    # Whatever is started ends here.
    monkeypatch.setattr(setup_env, "missing_prerequisites", lambda venv: ["an end"])
    (venv / ".setup-complete").write_text(setup_env._fingerprint())
    setup_env.main()
    (requirements / "torch.txt").write_text("torch==2.12.0\n")
    with pytest.raises(SystemExit, match="an end"):
        setup_env.main()
    (venv / ".setup-complete").write_text(setup_env._fingerprint())
    setup_env.main()
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="an end"):
        setup_env.main()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], {"lock.txt"}),
        (["--transformers"], {"constraints.txt", "transformers.txt"}),
        (["--app"], {"constraints.txt", "app.txt"}),
    ],
)
def test_the_set_up_of_transformers_compiles_nothing(tmp_path, monkeypatch, words, named):
    commands, openmmlab = [], []
    monkeypatch.setattr(setup_env, "missing_prerequisites", lambda venv: [])
    monkeypatch.setattr(setup_env, "_step", lambda title, command, log: commands.append([*map(str, command)]))
    monkeypatch.setattr(setup_env, "_install_openmmlab", lambda *_: openmmlab.append(1))
    monkeypatch.setattr(sys, "argv", ["setup_env.py", str(tmp_path), *words])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    setup_env.main()
    files = {Path(word).name for command in commands for word in command if word.endswith(".txt")}
    assert files == {"torch.txt"} | named
    assert bool(openmmlab) is not bool(words)
    if words == ["--app"]:
        # gradio's, which is not the lock's.
        assert "pillow" not in (tmp_path / "constraints.txt").read_text()
    assert (tmp_path / ".setup-complete").is_file()


@pytest.mark.parametrize("flags", [None, "-include header"])
def test_a_failed_build_is_made_again_the_plain_way(monkeypatch, flags):
    steps = []

    def step(title, command, log, environment=None, may_fail=False):
        steps.append((title, (environment or {}).get("CFLAGS"), may_fail))
        if title == "mmcv":
            # pip takes a line of comment for a requirement that it cannot read.
            assert re.fullmatch(r"onedl-mmcv==[\d.]+", command[-1]), command
            # What pip compiled before may be for another torch.
            assert "--no-cache-dir" in command
        return not may_fail

    monkeypatch.setattr(setup_env, "_step", step)
    monkeypatch.setattr(setup_env, "_mmcv_environment", lambda python: {})
    monkeypatch.setattr(setup_env, "precompile_header", lambda *_: flags)
    meanwhile = []
    monkeypatch.setattr(setup_env, "_meanwhile", lambda title, command, *_: meanwhile.append(command) or nullcontext())
    setup_env._install_openmmlab(Path(sys.executable), ["pip", "install"], None)
    tried = [] if flags is None else [("mmcv", flags, True)]
    assert steps == [*tried, ("mmcv", None, False), ("mmcv's wheel", None, False)]
    # Not mmcv itself, which pip would compile a second time.
    (packages,) = meanwhile
    assert "onedl-mmdetection" in " ".join(map(str, packages)) and "mmcv" not in " ".join(map(str, packages))


def test_what_runs_beside_the_build_is_awaited_logged_and_ended(tmp_path, capfd):
    with (tmp_path / "log").open("w") as log:
        with setup_env._meanwhile("beside", [sys.executable, "-c", "print('made')"], log, os.environ):
            pass
        assert (tmp_path / "log").read_text() == "made\n"
        failing = [sys.executable, "-c", "raise SystemExit('no such package')"]
        with (
            pytest.raises(SystemExit, match="no such package"),
            setup_env._meanwhile("beside", failing, log, os.environ),
        ):
            pass
        # Where the build fails nothing goes on behind its back.
        endless = [sys.executable, "-c", "import time; time.sleep(600)"]
        with pytest.raises(SystemExit, match="mmcv"), setup_env._meanwhile("beside", endless, log, os.environ):
            sys.exit("mmcv")


def test_a_compiler_may_be_a_command_of_several_words(monkeypatch, tmp_path):
    for compiler, is_missing in (("env c++", False), ("", False), ("no-such-program c++", True)):
        monkeypatch.setenv("CXX", compiler)
        said = [line for line in setup_env.missing_prerequisites(tmp_path / "venv") if "no C++ compiler" in line]
        assert bool(said) == is_missing, compiler
        assert not is_missing or compiler in said[0]


def test_what_requirements_pin_themselves_is_not_asked_of_the_lock(tmp_path):
    (tmp_path / "lock.txt").write_text(
        "# A lock.\nPillow==13.0.0; python_version >= '3.11'\nnumpy==2.2.6\ntorch==2.11.0\n"
    )
    (tmp_path / "app.txt").write_text("-r others.txt\npillow==12.3.0\nnumpy\n")
    assert setup_env.unpinned(tmp_path / "lock.txt", tmp_path / "app.txt") == "# A lock.\nnumpy==2.2.6\ntorch==2.11.0\n"

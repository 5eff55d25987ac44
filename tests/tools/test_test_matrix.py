"""The program of `make test-matrix`: what it keeps, what goes on, what its table says. No environment is made."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing import load_tool

# It imports the program beside it.
sys.path.insert(0, "tools")
matrix = load_tool("test_matrix")
sys.path.remove("tools")

ONE = matrix.Environment("3.11", ("ops",), ("torch==2.6.0",))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "fingerprint", lambda environment: f"{environment}")
    return tmp_path


def test_a_result_is_kept_until_something_changes(folder, monkeypatch):
    made = []
    monkeypatch.setattr(matrix, "make", lambda environment, folder: made.append(folder.name) or "python")
    monkeypatch.setattr(matrix, "versions", lambda python: dict(python="3.11.7", torch="2.6.0"))
    monkeypatch.setattr(matrix, "run_tests", lambda *_: dict(passed=3, failed=0, skipped=1, minutes=0.5))
    first = matrix.tested("one", ONE)
    assert matrix.tested("one", ONE) == first and made == ["one"]
    monkeypatch.setattr(matrix, "fingerprint", lambda environment: "changed")
    assert matrix.tested("one", ONE) == first | dict(fingerprint="changed") and made == ["one"] * 2


def test_what_cannot_be_made_stops_nothing_and_is_tried_again(folder, monkeypatch, capsys):
    tries = []

    def make(environment, folder):
        tries.append(folder.name)
        if environment.python == "3.10":
            raise matrix.CannotMake("there is no Python 3.10\nanywhere")
        return "python"

    monkeypatch.setattr(matrix, "ENVIRONMENTS", {"a": matrix.Environment("3.10", ()), "b": ONE})
    monkeypatch.setattr(matrix, "make", make)
    versions = dict(python="3.11.7", torch="2.6.0", timm="–", frameworks="mmengine 0.10.7, mmcv 2.1.0")
    monkeypatch.setattr(matrix, "versions", lambda python: versions)
    monkeypatch.setattr(matrix, "run_tests", lambda *_: dict(passed=31, failed=0, skipped=4, minutes=1.5))
    monkeypatch.setattr(sys, "argv", ["test_matrix.py"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="1"):
            matrix.main()
    assert tries == ["a", "b", "a"]
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| environment | python | torch | timm | frameworks | passed | failed | skipped | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| a | 3.10 | – | – | there is no Python 3.10 | 0 | 0 | 0 | 0 |",
        "| b | 3.11.7 | 2.6.0 | – | mmengine 0.10.7, mmcv 2.1.0 | 31 | 0 | 4 | 1.5 |",
    ]
    monkeypatch.setattr(sys, "argv", ["test_matrix.py", "b"])
    matrix.main()
    monkeypatch.setattr(sys, "argv", ["test_matrix.py", "c"])
    with pytest.raises(SystemExit, match="2"):
        matrix.main()


def test_an_environment_is_made_once_and_whole(folder, monkeypatch):
    commands = []

    def run(command, log):
        commands.append([str(part) for part in command])
        if len(commands) == 2:
            raise matrix.CannotMake("killed in the second step")

    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(matrix, "find_python", lambda version: f"/usr/bin/python{version}")
    monkeypatch.setattr(matrix.setup_env, "install_mmcv", lambda python, command, *_: commands.append(command))
    environment = matrix.Environment("3.10", (), ("torch==2.6.0",), "mmcv==2.1.0", ("mmdet==3.3.0",))
    (folder / "venv").mkdir()
    with pytest.raises(matrix.CannotMake):
        matrix.make(environment, folder)
    for _ in range(2):
        assert matrix.make(environment, folder) == folder / "venv" / "bin" / "python"
    assert len(commands) == 2 + 4
    assert commands[2][-3:] == ["--python", "/usr/bin/python3.10", str(folder / "venv")]
    # torch comes first, for mmcv is compiled for the one that is there.
    assert "torch==2.6.0" in commands[3] and commands[4][-1] == "mmcv==2.1.0" and "--no-cache" in commands[4]
    assert commands[5][-1] == "mmdet==3.3.0"
    matrix.make(matrix.Environment("3.12", ()), folder)
    assert commands[6] == ["/usr/bin/python3.12", str(matrix.ROOT / "tools" / "setup_env.py"), str(folder / "venv")]


def test_a_failed_command_is_named_with_its_log(tmp_path):
    with (tmp_path / "make.log").open("w") as log, pytest.raises(matrix.CannotMake, match=r"make.log: the last line$"):
        matrix.run([sys.executable, "-c", "print('first'); print('the last line'); raise SystemExit(3)"], log)


def test_a_shim_that_answers_nothing_is_passed_over(monkeypatch, tmp_path):
    for path, status in (("path/python3.10", 127), ("pyenv/versions/3.10.13/bin/python3.10", 0)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / path).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert matrix.find_python("3.10") == str(tmp_path / "pyenv/versions/3.10.13/bin/python3.10")
    with pytest.raises(matrix.CannotMake, match=r"there is no Python 3.9, neither on the path nor below .*pyenv"):
        matrix.find_python("3.9")


def test_counts_are_those_of_pytest(folder, monkeypatch):
    """One test of each kind, and a run that does not start."""
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_kinds.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_passes_too(): pass\n"
        "def test_fails(): assert 0\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_error(broken): pass\n"
        "def test_skipped(): pytest.skip('why')\n"
    )
    monkeypatch.setattr(matrix, "ROOT", folder)
    counts = matrix.run_tests(Path(sys.executable), ("test_kinds.py",), folder)
    assert counts | dict(minutes=0) == dict(passed=2, failed=2, skipped=1, minutes=0)
    with pytest.raises(matrix.CannotMake, match="pytest left no report"):
        matrix.run_tests(Path("false"), ("test_kinds.py",), folder)


def test_versions_are_those_of_the_python_that_is_asked(monkeypatch):
    import torch

    found = matrix.versions(Path(sys.executable))
    assert found["python"] == sys.version.split()[0] and found["torch"] == torch.__version__.partition("+")[0]


def test_the_fingerprint_holds_every_file_but_documents(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "code.py").write_text("1")
    prints = [matrix.fingerprint(ONE)]
    for name, changes in (("code.py", True), ("README.md", False), ("new.txt", True)):
        (tmp_path / name).write_text("2")
        prints.append(matrix.fingerprint(ONE))
        assert (prints[-1] != prints[-2]) == changes
    assert matrix.fingerprint(matrix.Environment("3.13", ("ops",), ("torch==2.6.0",))) != prints[-1]

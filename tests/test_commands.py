"""`defocus NAME` and `python -m backbones NAME`: one list of programs, each imported when it is asked for."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from defocus_commands import __main__ as program

TOOLS = Path("tools").resolve()
# What makes sense in a checkout alone.
OF_A_CHECKOUT = {
    "demo", "demo_detectron2", "demo_seg", "demo_transformers", "docs_pages", "setup_env", "steps", "test_matrix",
}  # fmt: skip


def run(monkeypatch, capsys, *words, typed="/somewhere/bin/defocus"):
    monkeypatch.setattr(sys, "argv", [typed, *words])
    try:
        status = program.main()
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_the_list_says_what_each_is(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "--help")
    assert status == 0 and "Scores prediction files of any trainer by the official rules" in out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert {"doctor", "evaluate", "export", "flops", "maps", "train-transformers"} <= {*names}
    assert all(len(line.split()) > 3 for line in out.splitlines() if line.startswith("  "))
    assert run(monkeypatch, capsys)[0] == 2


def test_every_program_stands_in_tools_too():
    """A file there is the same program, or one that no installed package has."""
    files = {path.stem for path in TOOLS.glob("*.py")} - {"__init__"}
    programs = {name.replace("-", "_") for name in program.names()} - {"doctor"}
    assert files == programs | OF_A_CHECKOUT
    for name in programs:
        assert f"\nfrom defocus_commands.{name} import main\n" in (TOOLS / f"{name}.py").read_text()


def test_an_unknown_name(monkeypatch, capsys):
    status, _, error = run(monkeypatch, capsys, "evalute", "--json", "x")
    assert status == 2 and error == "defocus: there is no 'evalute'; did you mean evaluate?\n"


def test_a_program_speaks_of_itself_as_it_was_called(monkeypatch, capsys):
    pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")
    for typed, called in (("/x/bin/defocus", "defocus"), ("/x/backbones/__main__.py", "python -m backbones")):
        status, _, error = run(monkeypatch, capsys, "evaluate", "--samples", "1", typed=typed)
        assert status == 2 and error.startswith(f"usage: {called} evaluate [-h]")


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    def absent(name):
        def import_module(_):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(program.importlib, "import_module", import_module)

    absent("hotcoco.mask")
    status, _, error = run(monkeypatch, capsys, "evaluate", "--help")
    assert status == 2 and error.startswith("defocus evaluate needs hotcoco, which is not installed")
    listed = (
        Path("pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("[project.")[0]
    )
    # Those left out are for tests, for work on the project, and for one format of checkpoints.
    extras = {*re.findall(r"^(\w+) = \[", listed, re.MULTILINE)} - {"test", "dev", "safetensors"}
    assert "app" in extras and extras <= {*re.findall(r"\w+", error)}
    # A fault of our own is not somebody else's absence.
    absent("defocus_eval.gone")
    with pytest.raises(ModuleNotFoundError, match="gone"):
        run(monkeypatch, capsys, "evaluate", "--help")


def test_python_m_backbones_is_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/x/backbones/__main__.py", "evalute"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("backbones.__main__", run_name="__main__")
    assert end.value.code == 2 and capsys.readouterr().err.startswith("python -m backbones: there is no 'evalute'")


def test_scores_and_submissions_start_without_pytorch():
    code = """
import sys
from defocus_commands.__main__ import main
sys.argv = ["defocus", "submit", "--board", "list"]
assert main() == 0
assert not {"torch", "mmengine", "detectron2", "backbones"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "as last known" in done.stdout, done.stderr

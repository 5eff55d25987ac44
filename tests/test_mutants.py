"""The program that breaks the code on purpose: it tells what is noticed from what survives, and leaves no trace."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mutants import run

if shutil.which("git") is None:
    pytest.skip("the program asks git for the files of the project", allow_module_level=True)

CODE = "def least(a, b):\n    return a if a < b else b\n\n\ndef most(a, b):\n    return max(a, b)\n"
TESTS = """import pytest
from code_ import least, most

def test_least():
    assert least(1, 2) == 1

def test_most():
    most(1, 2)

@pytest.mark.skip(reason="needs a machine that is not here")
def test_elsewhere():
    assert most(1, 2) == 2
"""


def mutant(old, new, test, file="code_.py"):
    return run.Mutant(file, old, new, (f"test_code.py{test}",), f"{old} to {new}")


@pytest.fixture
def project(tmp_path):
    """A project of its own, with a folder that git does not take."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    for name, text in {"code_.py": CODE, "test_code.py": TESTS, ".gitignore": "data\n", "data/big": "x"}.items():
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


def test_each_change_has_its_fate(project, capsys):
    right = mutant("a < b", "a > b", "::test_least")
    weak = mutant("max(a, b)", "min(a, b)", "::test_most")
    elsewhere = mutant("max(a, b)", "min(a, b)", "::test_elsewhere")
    stale = [
        mutant("a <= b", "a > b", ""),
        mutant("(a, b)", "()", ""),
        mutant("a", "b", "", file="gone.py"),
        mutant("a < b", "a > b", "::test_renamed"),
    ]
    outcome = run.run_mutants(project, [right, weak, elsewhere, *stale])
    assert outcome == run.Outcome(noticed=[right], survived=[weak], stale=stale, skipped=[elsewhere])
    printed = capsys.readouterr().out
    assert "1 noticed, 1 survived, 4 stale, 1 skipped" in printed
    assert "SURVIVED code_.py: max(a, b) to min(a, b)\n- max(a, b)\n+ min(a, b)\n  test_code.py::test_most" in printed
    assert (project / "code_.py").read_text() == CODE
    assert sorted(path.name for path in project.iterdir()) == [".git", ".gitignore", "code_.py", "data", "test_code.py"]


def test_files_of_tests_that_are_skipped_here_are_no_error(project):
    (project / "test_absent.py").write_text("import pytest\npytest.importorskip('no_such_framework')\n" + TESTS)
    named = mutant("a < b", "a > b", "")._replace(tests=("test_absent.py::test_least",))
    whole = mutant("a < b", "a > b", "")._replace(tests=("test_absent.py",))
    both = mutant("a < b", "a > b", "")._replace(tests=("test_absent.py", "test_code.py"))
    outcome = run.run_mutants(project, [named, whole, both])
    assert outcome == run.Outcome(noticed=[both], survived=[], stale=[], skipped=[named, whole])


def test_tests_that_fail_anyway_tell_nothing(project):
    (project / "test_code.py").write_text(TESTS + "\ndef test_broken():\n    assert most(1, 2) == 3\n")
    with pytest.raises(RuntimeError, match=r"(?s)do not pass on unchanged code.*test_broken"):
        run.run_mutants(project, [mutant("a < b", "a > b", "")])


def test_a_change_that_never_ends_is_noticed_and_stopped(project, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    # The time is up as soon as it waits.
    monkeypatch.setattr(run, "monotonic", lambda: 2 * run.TIMEOUT if pid.exists() and pid.read_text() else 0)
    wait = f"__import__('subprocess').run(['sh', '-c', 'echo $$ > {pid}; exec sleep 99'])"
    endless = mutant("max(a, b)", wait, "")
    assert run.run_mutants(project, [endless]).noticed == [endless]
    # What its test had started is dead, or waits to be buried.
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_only_what_git_takes_is_copied(project, tmp_path):
    run.copy_tree(project, tmp_path / "copy")
    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == [".gitignore", "code_.py", "test_code.py"]


@pytest.mark.parametrize("content", ["{", "[{}]", '[{"file": "a", "old": "b", "new": "c", "tests": [], "note": "d"}]'])
def test_a_list_that_is_wrong_is_named(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=r"list\.json"):
        run.read_list(tmp_path / "list.json")


def test_the_lists_are_well_formed_and_fresh():
    """They are run once a week; what a change makes stale is said at once."""
    paths = list(run.HERE.glob("*.json"))
    mutants = [mutant for path in paths for mutant in run.read_list(path)]
    assert paths and len({mutant[:3] for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        assert mutant.old and mutant.old != mutant.new and mutant.note, mutant
        assert (run.ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert not name or f"def {name.partition('[')[0]}(" in (run.ROOT / file).read_text(), mutant
            assert (run.ROOT / file).exists(), mutant

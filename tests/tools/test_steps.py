"""The steps of a demo: run once, and said what to do where one fails."""

import os
import sys

import pytest

from tools import steps


def leave(path) -> list:
    """A command that appends a line to ``path``, as a step leaves its result."""
    return [sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write('done\\n')", path]


def test_a_step_is_not_repeated(tmp_path, capfd):
    result = tmp_path / "final.pth"
    steps.run_step(steps.Step("Training", leave(result), unless=result))
    steps.run_step(steps.Step("Training", leave(result), unless=result))
    assert result.read_text() == "done\n"
    assert f"Training: done before, {result} is there" in capfd.readouterr().out


def test_a_step_is_repeated_where_its_result_is_older_than_what_it_starts_from(tmp_path):
    start, result = tmp_path / "final.pth", tmp_path / "predictions.json"
    for path, seconds in ((result, 100), (start, 200)):
        path.touch()
        os.utime(path, (seconds, seconds))
    for _ in range(2):
        steps.run_step(steps.Step("Scoring", leave(result), unless=result, newer_than=start))
    assert result.read_text() == "done\n"


def test_a_failed_step_ends_the_program_and_keeps_its_result_open(tmp_path):
    result = tmp_path / "final.pth"
    with pytest.raises(SystemExit, match=r"Training failed \(exit status 3\); the same command goes on from here"):
        steps.run_step(steps.Step("Training", [sys.executable, "-c", "raise SystemExit(3)"], unless=result))
    steps.run_step(steps.Step("Training", leave(result), unless=result))
    assert result.exists()


def test_a_step_sees_its_environment(tmp_path):
    result = tmp_path / "seen"
    command = [sys.executable, "-c", f"import os; open({str(result)!r}, 'w').write(os.environ['DEFOCUS_SEEN'])"]
    steps.run_step(steps.Step("Looking", command, {"DEFOCUS_SEEN": "here"}))
    assert result.read_text() == "here"


@pytest.mark.parametrize("bf16", [True, False])
def test_the_precision_chosen_is_what_mmengine_is_told(monkeypatch, capsys, bf16):
    monkeypatch.setattr(steps, "choose_bf16", lambda: (bf16, "because"))
    assert steps.fastest_precision() == (["--cfg-options", "optim_wrapper.type=Bf16OptimWrapper"] if bf16 else [])
    assert capsys.readouterr().out == "because\n"

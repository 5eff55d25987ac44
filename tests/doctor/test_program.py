"""The doctor's program and its page."""

import json
from dataclasses import replace

import pytest
import torch

from backbones.benchmark.cases import CASES
from backbones.doctor import __main__ as program
from backbones.doctor import checks, diagnosis, surroundings
from backbones.doctor.records import Check
from tests.testing import needs_library


@pytest.fixture
def small(monkeypatch):
    """The program at sizes that take no time, and without the import of the large packages."""
    cases = {
        name: replace(case, small=case.small[:1], published=dict(cpu=case.small[0])) for name, case in CASES.items()
    }
    monkeypatch.setattr(program, "CASES", cases)
    monkeypatch.setattr(program, "devices", lambda: ["cpu"])
    monkeypatch.setattr(surroundings, "PACKAGES", {"timm": "timm", "none": "no_such_package"})
    # On sizes that take no time none is faster.
    monkeypatch.setattr(diagnosis, "SLOWER", 1e9)


@needs_library
def test_the_program_here(small, tmp_path, capsys):
    file = tmp_path / "doctor.json"
    assert program.main(["--out", str(file)]) == 0
    out, err = capsys.readouterr()
    content = json.loads(file.read_text())
    assert content["status"] == 0 and content["format"] == 1
    assert content["machine"]["none"] == "not installed" and content["machine"]["PyTorch"].startswith(torch.__version__)
    assert {record["operation"] for record in content["choices"]} == set(CASES)
    by_operation = {name: set() for name in CASES}
    for record in content["checks"]:
        by_operation[record["operation"]].add(record["backend"])
        assert record["faults"] == [] and record["error"] <= record["limit"] and record["same_bits"] is True
    for name, backends in by_operation.items():
        case = CASES[name]
        assert backends == {backend.name for backend in checks.runnable(case, "cpu")}
    assert {record["operation"] for record in content["speeds"]} == set(CASES)
    for heading in ("# De-focus doctor", "## Machine", "## Against the definition", "## Time and memory"):
        assert f"{heading}\n" in out
    assert "| defocus_scan | cpu | cpu | " in out
    assert "defocus_scan on cpu: b 2" in err and "importing timm" in err


def test_a_folder_that_is_not_there_is_said_before_the_work(capsys, tmp_path):
    with pytest.raises(SystemExit):
        program.main(["--out", str(tmp_path / "none" / "doctor.json")])
    assert "there is no folder" in capsys.readouterr().err


def test_what_was_found_before_an_interruption_is_kept(small, tmp_path, monkeypatch, capsys):
    def interrupted(cases, devices, say, result):
        result.checks.append(Check("scan", "quick", "cpu", "b 1", "fp32", failure="RuntimeError"))
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "examine", interrupted)
    file = tmp_path / "doctor.json"
    assert program.main(["--out", str(file)]) == 130
    assert "this was interrupted" in capsys.readouterr().out
    assert json.loads(file.read_text())["checks"][0]["failure"] == "RuntimeError"

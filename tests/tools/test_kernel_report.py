"""The program prints, keeps and replaces what the package finds."""

import json
import sys

import pytest

from tests.kernel_report.support import needs_compiler
from tests.testing import load_tool


@pytest.fixture
def run(monkeypatch, capsys):
    tool = load_tool("kernel_report")

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["kernel_report.py", *map(str, args)])
        tool.main()
        return capsys.readouterr().out

    return run


@needs_compiler
def test_one_kernel_on_one_architecture(run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- kernel_report -->\nold\n<!-- /kernel_report -->\n")
    where = ("--out", tmp_path / "all.json", "--page", page)
    text = run("--arch", "sm_90", "--dtype", "bf16", "--kernel", "causal_conv1d._forward", "--workers", 1, *where)
    (found,) = json.loads((tmp_path / "all.json").read_text())
    assert found["architecture"] == "sm_90" and "block" not in found
    assert found["kernels"] and all("conv1d._forward" in row["kernel"] for row in found["kernels"])
    assert f"| {found['kernels'][0]['kernel']} | bf16 | {found['kernels'][0]['registers']} |" in text
    assert page.read_text() == f"before\n<!-- kernel_report -->\n\n{text.rstrip()}\n\n<!-- /kernel_report -->\n"


@needs_compiler
def test_limits_are_of_one_whole_report(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("--limits", tmp_path / "limits.json", "--arch", "sm_90")
    assert "--limits takes one --arch and one --dtype" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_it_says_so(run, monkeypatch, capsys):
    monkeypatch.setattr(load_tool("kernel_report"), "missing_tools", lambda: "no ptxas: install Triton")
    with pytest.raises(SystemExit):
        run()
    assert "no ptxas: install Triton" in capsys.readouterr().err

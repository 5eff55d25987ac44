"""The program: what it prints and writes, and how it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hotcoco", reason="hotcoco is not installed (the extra eval)")

from tests.testing import load_tool

DATA = Path("tests/data/evaluation")
BOXES = ["--predictions", str(DATA / "mmdet_coco.bbox.json"), "--annotations", str(DATA / "instances.json")]


def test_it_runs_as_a_program_from_anywhere_and_needs_no_trainer(tmp_path):
    """With no PYTHONPATH, and nothing imported that trains."""
    code = f"""
import runpy, sys
sys.argv = ["evaluate.py", *{[str(Path(part).resolve()) if "/" in part else part for part in BOXES]}, "--samples", "10",
            "--json", "scores.json", "--markdown", "scores.md"]
try:
    runpy.run_path({str(Path("tools/evaluate.py").resolve())!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "mmdet", "mmseg", "mmengine", "detectron2", "backbones", "cv2"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| official " in done.stdout and "wrote scores.json" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < scores["bbox"]["AP"] < 1
    assert f"{100 * scores['bbox']['AP']:.1f}" in (tmp_path / "scores.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.md"]


def test_options_reach_the_scores(tmp_path, capsys):
    path = tmp_path / "scores.json"
    options = ["--tasks", "bbox", "--samples", "7", "--seed", "3", "--level", "0.5", "--json", str(path)]
    tool = load_tool("evaluate")
    assert tool.main([*BOXES, *options, "--against", str(DATA / "mmdet_coco.bbox.json")]) == 0
    about = json.loads(path.read_text())["about"]
    assert (about["samples"], about["seed"], about["level"]) == (7, 3, 0.5)
    assert about["against"].endswith("mmdet_coco.bbox.json")
    assert "difference" in capsys.readouterr().out


def test_names_of_labels_and_the_label_to_ignore(tmp_path, capsys):
    path = tmp_path / "scores.json"
    maps = ["--predictions", str(DATA / "semantic"), "--annotations", str(DATA / "semantic"), "--samples", "0"]
    tool = load_tool("evaluate")
    tool.main([*maps, "--classes", "wall", "kite", "tile", "stain", "--ignore-label", "3", "--json", str(path)])
    classes = json.loads(path.read_text())["semantic"]["per_class"]
    assert list(classes) == ["wall", "kite", "tile"] and classes["kite"]["IoU"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--predictions", "nowhere.json"], "cannot read nowhere.json"),
        (["--tasks", "boxes"], "there is no task boxes"),
        (["--json", "tests"], "tests is a folder; give the file to write"),
        (["--markdown", "nowhere/scores.md"], "nowhere does not exist; make it, or write elsewhere"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(options, message, tmp_path, capsys):
    target = tmp_path / "scores.json"
    with pytest.raises(SystemExit) as stop:
        load_tool("evaluate").main([*BOXES, "--json", str(target), *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    target = tmp_path / "scores.json"
    target.write_text("before")
    tool = load_tool("evaluate")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tool.main([*BOXES, "--samples", "0", "--json", str(target)])
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]

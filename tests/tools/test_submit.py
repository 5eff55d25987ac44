"""The program that packs predictions for a leaderboard: what it prints, what it leaves, how it ends."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from defocus_eval import boards
from tests.defocus_eval.boards.drawn import FRAMES, MAKERS, SIZES
from tests.testing import load_tool

tool = load_tool("submit")


def arguments(board, case, **changes):
    options = {
        "board": board,
        "predictions": case.predictions,
        "images": case.images,
        "method": "Drawn",
        "out": case.out,
        "external-data": "none",
        **changes,
    }
    given = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        given += [f"--{name}", *map(str, values)]
    return given


@pytest.fixture
def small(monkeypatch):
    """The boards with as many images as the drawn sets have."""
    table = {name: replace(board, images=3, size=None) for name, board in boards.BOARDS.items()}
    for name, board in table.items():
        monkeypatch.setitem(boards.BOARDS, name, board)


def test_packs_and_tells(small, tmp_path, capsys):
    case = MAKERS["coco-val"](tmp_path)
    assert tool.main(arguments("coco-test-dev", case, **{"external-data": "ImageNet-1K"})) == 0
    printed = capsys.readouterr().out
    package = case.out / "detections_test-dev2017_Drawn_results.zip"
    # The state comes first: nobody hands in what cannot be handed in.
    assert printed.startswith("COCO test-dev2017, boxes or masks, as last known in November 2026: CodaLab's COCO")
    assert "Mended: 9 scores written without digits" in printed
    assert "Note: val.segm.json: bbox was taken out of 9 entries of masks" in printed
    assert f"Wrote {package}: 9 masks in 3 of 3 images" in printed
    with zipfile.ZipFile(package) as archive:
        assert archive.namelist() == ["detections_test-dev2017_Drawn_results.json"]
    assert "ImageNet-1K" in package.with_suffix(".md").read_text()


def test_refuses_with_the_entry_and_leaves_nothing(small, tmp_path, capsys):
    case = MAKERS["coco-test-dev"](tmp_path).change(lambda content: content[4].update(score=7))
    with pytest.raises(SystemExit) as left:
        tool.main(arguments("coco-test-dev", case))
    assert left.value.code == 2
    assert "entry 5: score 7 does not lie between 0 and 1; write probabilities" in capsys.readouterr().err
    assert not case.out.exists()


@pytest.mark.parametrize("absent", ["predictions", "images", "method", "out"])
def test_tells_what_is_missing(absent, tmp_path, capsys):
    case = MAKERS["coco-val"](tmp_path)
    with pytest.raises(SystemExit):
        tool.main(arguments("coco-val", case, **{absent: None}))
    assert f"--{absent} is missing" in capsys.readouterr().err


def test_empty_images_are_named_by_a_file(small, tmp_path, capsys):
    case = MAKERS["coco-test-dev"](tmp_path).rewrite(lambda content: content[:3])
    (tmp_path / "empty.txt").write_text(f"9\n{12:012}.jpg\n")
    assert tool.main(arguments("coco-test-dev", case, **{"known-empty": f"@{tmp_path}/empty.txt"})) == 0
    assert "3 boxes in 1 of 3 images" in capsys.readouterr().out


@pytest.mark.parametrize("board", ["coco-test-dev", "coco-panoptic", "cityscapes-instances"])
def test_rehearses(board, tmp_path, capsys):
    case = MAKERS[board](tmp_path)
    assert tool.main(arguments(board, case, rehearse=True)) == 0
    printed = capsys.readouterr().out
    assert "| score | predictions | unpacked package |" in printed
    assert "scores of the package are those of the predictions." in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ") and "0." in line]
    assert rows and all(row[1] == row[2].removesuffix(" |") for row in rows)


def test_a_rehearsal_that_differs_without_reason_fails(tmp_path, capsys, monkeypatch):
    case = MAKERS["ade20k"](tmp_path)
    scores = iter([{"mIoU": 0.5, "mAcc": 0.25}, {"mIoU": 0.5, "mAcc": 0.5}])
    monkeypatch.setattr(boards.submission, "_scores", lambda *_: next(scores))
    assert tool.main(arguments("ade20k", case, rehearse=True)) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 scores differ: they must not." in printed and "| mAcc | 0.500000 | 0.250000 |" in printed


def test_a_cut_is_told_and_no_failure(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(boards.BOARDS, "coco-val", replace(boards.BOARDS["coco-val"], per_image=1))
    case = MAKERS["coco-val"](tmp_path)
    assert tool.main(arguments("coco-val", case, rehearse=True)) == 0
    printed = capsys.readouterr().out
    assert "scores differ: coco-val counts the best 1 detections an image alone, pycocotools more." in printed


def test_other_options_reach_the_package(small, tmp_path):
    case = MAKERS["coco-panoptic"](tmp_path)
    (tmp_path / "val.panoptic").rename(tmp_path / "elsewhere")
    content = json.loads(case.images.read_text())
    (tmp_path / "classes.json").write_text(json.dumps({"categories": content["categories"]}))
    case.images.write_text(json.dumps({"images": content["images"], "categories": [{"id": 1, "name": "person"}]}))
    places = {"predictions-folder": tmp_path / "elsewhere", "categories": tmp_path / "classes.json"}
    assert tool.main(arguments("coco-panoptic", case, **places)) == 0
    with zipfile.ZipFile(case.out / "panoptic_test-dev2017_Drawn_results.zip") as archive:
        assert len(archive.namelist()) == len(SIZES) + 1
    case = MAKERS["cityscapes"](tmp_path / "b")
    assert tool.main(arguments("cityscapes", case, labels="board")) == 0
    with zipfile.ZipFile(case.out / "cityscapes_test_Drawn.zip") as archive:
        assert archive.namelist() == [f"{frame}.png" for frame in FRAMES]
    case = MAKERS["coco-test-dev"](tmp_path / "c")
    assert tool.main(arguments("coco-test-dev", case, task="bbox", decimals=0)) == 0
    with zipfile.ZipFile(case.out / "detections_test-dev2017_Drawn_results.zip") as archive:
        found = json.loads(archive.read(archive.namelist()[0]))
    assert all(number == round(number) for entry in found for number in entry["bbox"])


def test_runs_as_a_file_without_a_trainer(tmp_path):
    """Neither PyTorch nor a framework is imported."""
    script = (
        "import runpy, sys\n"
        "sys.argv = ['submit.py', '--board', 'list']\n"
        "try:\n    runpy.run_path('tools/submit.py', run_name='__main__')\n"
        "except SystemExit as left:\n    assert not left.code\n"
        "assert not {'torch', 'mmengine', 'detectron2', 'backbones'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(boards.BOARDS)
    assert all("as last known in November 2026" in line for line in lines)

"""Pictures and curves of a segmentor, from files as mmseg writes them."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from PIL import Image

from defocus_eval.logs import read_logs
from tests.testing import load_tool

SIZE = (24, 32)


@pytest.fixture
def folder(tmp_path):
    for kind in ("images", "truth", "predictions"):
        (tmp_path / kind).mkdir()
    labels = np.zeros(SIZE, np.uint8)
    labels[4:12, 4:12] = 1
    for number in range(3):
        Image.fromarray(np.full((*SIZE, 3), 200, np.uint8)).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(labels).save(tmp_path / f"truth/{number}.png")
        Image.fromarray(labels).save(tmp_path / f"predictions/{number}.png")
    for part, steps in enumerate(((10, 20), (20, 30))):
        records = [{"loss": 1.0 / step, "step": step} for step in steps] + [{"mIoU": 50.0 + part, "step": steps[1]}]
        (tmp_path / f"{part}.json").write_text("\n".join(map(json.dumps, records)) + '\n{"loss": 0.1, "st')
    return tmp_path


def show(folder, *options):
    words = ["--images", folder / "images", "--annotations", folder / "truth", "--out", folder / "out"]
    words += ["--predictions", folder / "predictions", "--classes", "background", "square", *options]
    return load_tool("show_segmentation").main([str(word) for word in words])


def test_draws_predictions_and_curves(folder):
    assert show(folder, "--log", folder / "0.json", folder / "1.json") == 0
    assert (folder / "out/curves.png").stat().st_size > 0
    pixels = np.asarray(Image.open(folder / "out/predictions.png").convert("RGB")).astype(float)

    def share(color):
        return (np.abs(pixels - color).max(-1) <= 2).mean()

    # The image is grey of 200; a square is 64 of its 768 pixels, tinted with 65 % of class 1's blue.
    square, ground = share(0.35 * 200 + 0.65 * np.array([31, 119, 180])), share(200)
    assert square / (square + ground) == pytest.approx(64 / 768, rel=0.1)


def test_parts_of_a_resumed_run_are_joined(folder):
    run = read_logs([folder / "0.json", folder / "1.json"])
    assert run.losses == pytest.approx({10: 0.1, 20: 0.05, 30: 1 / 30})
    assert {e.iteration: e.scores["mIoU"] for e in run.evaluations} == {20: 0.5, 30: 0.51}


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: [p.unlink() for p in (f / "predictions").iterdir()], "holds no PNG files"),
        (lambda f: (f / "truth/1.png").unlink(), r"truth/1.png cannot be read"),
        (lambda f: Image.new("L", (5, 5)).save(f / "predictions/0.png"), "they must be equal"),
    ],
)
def test_a_file_that_is_wrong_is_named(folder, capsys, spoil, message):
    spoil(folder)
    with pytest.raises(SystemExit) as end:
        show(folder)
    assert end.value.code == 2 and message in capsys.readouterr().err

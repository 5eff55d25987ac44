"""tools/filters.py as a command: what it leaves behind, and what it refuses."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from backbones.analysis import learned_filters
from backbones.analysis.figures import new_figure
from backbones.defocus import FAMILIES
from tests.test_families import TINY
from tests.testing import load_tool

FILES = {"passbands.png", "histograms.png", "by_layer.png", "filters.md", "filters.json", "filters.npz"}


def run(folder, *words):
    return load_tool("filters").main([str(word) for word in ("--out", folder / "out", *words)])


def save(folder, family, scale=1.0, **settings):
    """A detector whose decay rates are ``scale`` times their initial values."""
    model = FAMILIES[family](TINY[family], **settings)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("A_log", "log_rate")):
                value += np.log(scale)
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, folder / "det.pth")
    return model.state_dict()


@pytest.fixture
def blank_pictures(monkeypatch):
    """Draws nothing: the time goes into drawing, and one test that does it is enough."""
    for name in ("draw_passbands", "draw_by_layer", "draw_histograms"):
        monkeypatch.setattr(load_tool("filters"), name, lambda filters, *layers: new_figure(1, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_before_and_after_training(tmp_path, capsys, blank_pictures, family):
    weights = save(tmp_path, family, scale=3.0)
    assert run(tmp_path, "--checkpoint", tmp_path / "det.pth", "--delta-scale", 2) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    after = learned_filters(weights, delta_scale=2.0)
    with np.load(tmp_path / "out/filters.npz") as arrays:
        assert len(arrays) == 8
        np.testing.assert_array_equal(arrays["after/blocks.1/decay"], after[1].decay)
        np.testing.assert_allclose(arrays["before/blocks.1/decay"], after[1].decay / 3, rtol=1e-5)
    found = json.loads((tmp_path / "out/filters.json").read_text())
    record = found["after"][0]
    assert record["decay_ratio"] == pytest.approx([3, 3, 3], rel=1e-5)
    assert record["phase_ratio"] == pytest.approx([1, 1, 1])
    assert record["filters"] == after[0].decay.size and record["banks"] == after[0].decay.shape[0]
    assert record["half_life"] == pytest.approx(
        np.percentile(np.log(2) / -after[0].decay, [10, 50, 90], method="nearest")
    )
    text = (tmp_path / "out/filters.md").read_text()
    assert text in capsys.readouterr().out and "before, blocks.0" in text and "3 · 3 · 3" in text


def test_an_earlier_checkpoint(tmp_path, blank_pictures):
    save(tmp_path, "DefocusViT", scale=2.0)
    (tmp_path / "det.pth").rename(tmp_path / "early.pth")
    save(tmp_path, "DefocusViT", scale=6.0)
    assert run(tmp_path, "--checkpoint", tmp_path / "det.pth", "--before", tmp_path / "early.pth") == 0
    found = json.loads((tmp_path / "out/filters.json").read_text())
    assert found["after"][1]["decay_ratio"] == pytest.approx([3, 3, 3], rel=1e-5)


def test_a_network_without_decay(tmp_path):
    save(tmp_path, "DefocusRetNet", decay="none")
    assert run(tmp_path, "--checkpoint", tmp_path / "det.pth") == 0
    found = json.loads((tmp_path / "out/filters.json").read_text())
    # Its family is told by its decay, so that nothing is known of before.
    assert "before" not in found and found["after"][0]["half_life"] == [None] * 3


def test_the_scales_of_a_config(tmp_path, blank_pictures):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    weights = save(tmp_path, "DefocusMamba")
    (tmp_path / "config.py").write_text(
        "model = dict(backbone=dict(type='DefocusMamba', rope_scale=20.0, delta_scale=4.57))\n"
    )
    words = ["--checkpoint", tmp_path / "det.pth", "--config", tmp_path / "config.py", "--rope-scale", 5]
    assert run(tmp_path, *words) == 0
    truth = learned_filters(weights, rope_scale=5, delta_scale=4.57)[0]
    with np.load(tmp_path / "out/filters.npz") as arrays:
        np.testing.assert_array_equal(arrays["after/blocks.0/decay"], truth.decay)
        np.testing.assert_array_equal(arrays["after/blocks.0/phase"], truth.phase)


def test_what_is_refused(tmp_path, capsys):
    def refusal(*words):
        with pytest.raises(SystemExit) as end:
            run(tmp_path, *words)
        assert end.value.code == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    save(tmp_path, "DefocusViT")
    checkpoint = ["--checkpoint", tmp_path / "det.pth"]
    assert "there is no layer -3" in refusal(*checkpoint, "--layers", -3)
    assert "--delta-scale must be positive, got 0.0" in refusal(*checkpoint, "--delta-scale", 0)
    torch.save(FAMILIES["DefocusMamba"](TINY["DefocusMamba"]).state_dict(), tmp_path / "mamba.pth")
    assert "holds another network" in refusal(*checkpoint, "--before", tmp_path / "mamba.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert "there is no De-focus backbone" in refusal("--checkpoint", tmp_path / "other.pth")
    save(tmp_path, "DefocusViT", decay="none", phase="none")
    assert "neither decay nor phase" in refusal(*checkpoint)

"""tools/maps.py as a command: what it leaves behind, and what it refuses."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from PIL import Image

from backbones.analysis import cut, measure, measuring
from backbones.analysis.drawing import pictures
from backbones.classifier import CLASSIFIERS
from backbones.defocus import FAMILIES
from tests.test_families import TINY
from tests.testing import load_tool

PICTURES = {f"{name}.png" for name in ("attention", "erf", "features", "gradient", "numbers", "receptive_field")}
IN_ORDER = {"scan_order.png", "in_scan_order.png"}
NUMBERS = {"maps.json", "maps.md", "maps.npz"}


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (75, 107, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path


def run(folder, *words):
    words = ["--image", folder / "image.png", "--out", folder / "out", *words]
    return load_tool("maps").main([str(word) for word in words])


def refusal(capsys, folder, *words):
    with pytest.raises(SystemExit) as end:
        run(folder, *words)
    assert end.value.code == 2 and not (folder / "out").exists()
    return capsys.readouterr().err


@pytest.fixture
def one_picture(monkeypatch):
    """Draws the first picture only: the time goes into drawing."""
    monkeypatch.setattr(load_tool("maps"), "pictures", lambda networks: dict([*pictures(networks).items()][:1]))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_of_a_classifier(folder, capsys, one_picture, family):
    model = CLASSIFIERS[family](TINY[family], num_classes=5)
    torch.save({"model": model.state_dict()}, folder / "cls.pth")
    words = ["--checkpoint", folder / "cls.pth", "--section-size", 32]
    words += ["--set", "causal=False"] if "ViT" in family else []
    assert run(folder, *words, "--layers", -1, "--queries", 2, "--target", 1) == 0
    assert {path.name for path in (folder / "out").iterdir()} == {"receptive_field.png"} | NUMBERS
    found = json.loads((folder / "out/maps.json").read_text())
    (network,) = found["networks"]
    assert network["family"] == f"{family}Classifier" and network["loss"] == "training loss for class 1"
    assert (network["tokens"], network["tokens_on_image"], network["drawn"]) == (49, 35, ["blocks.1"])
    table = (folder / "out/maps.md").read_text()
    assert table in capsys.readouterr().out and "| blocks.0 |" in table and "on padding" in table
    # The same by hand: ImageNet's mean and deviation, sections as asked.
    settings = dict(section_size=32) | (dict(causal=False) if "ViT" in family else {})
    model = CLASSIFIERS[family](TINY[family], num_classes=5, **settings)
    model.load_state_dict(torch.load(folder / "cls.pth")["model"])
    pixels = np.asarray(Image.open(folder / "image.png"), np.float32)
    image = (pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    image = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]
    with measuring(model):
        truth = measure(cut(model, image), image, layers=[1], queries=2, target=1).arrays()
    with np.load(folder / "out/maps.npz") as arrays:
        assert set(arrays) == set(truth)
        for name in truth:
            np.testing.assert_allclose(arrays[name], truth[name], rtol=1e-3, atol=1e-4 * abs(truth[name]).max())


def test_of_a_detector_by_its_config_beside_another_checkpoint(folder):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    config = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"
    arch = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)
    for name in ("before", "after"):
        weights = FAMILIES["DefocusMamba"](arch, patch_size=8).state_dict()
        torch.save({"state_dict": {f"backbone.{k}": v for k, v in weights.items()}}, folder / f"{name}.pth")
    words = ["--checkpoint", folder / "after.pth", "--config", config, "--set", f"arch={arch}"]
    assert (
        run(folder, *words, "--against", folder / "before.pth", "--size", 40, 48, "--layers", 0, "--cells", "0.5,0.5")
        == 0
    )
    both = {"scan_order-2.png", "in_scan_order-2.png", "maps-2.npz"}
    assert {path.name for path in (folder / "out").iterdir()} == PICTURES | IN_ORDER | NUMBERS | both
    networks = json.loads((folder / "out/maps.json").read_text())["networks"]
    assert [network["name"] for network in networks] == ["after.pth", "before.pth"]
    assert all(network["image"] == [40, 48] and network["tokens"] == 31 for network in networks)
    assert networks[0]["layers"] != networks[1]["layers"]


def test_a_resnet_beside(folder, monkeypatch):
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    asked = []
    monkeypatch.setattr(load_tool("maps"), "pictures", lambda networks: asked.extend(pictures(networks)) or {})
    words = ["--model", "DefocusRetNet", "--set", f"arch={TINY['DefocusRetNet']}", "--layers", 0]
    assert run(folder, *words, "--against-model", "resnet10t", "--names", "ours", "theirs", "--queries", 0) == 0
    text = (folder / "out/maps.md").read_text()
    assert "## ours" in text and "## theirs" in text and "It has no class token" in text
    # A convolutional network reads in no order.
    assert set(asked) == PICTURES | IN_ORDER


def test_what_is_refused(folder, capsys):
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "other.pth")
    assert "there is no De-focus backbone" in refusal(capsys, folder, "--checkpoint", folder / "other.pth")
    assert "does not exist" in refusal(capsys, folder, "--checkpoint", folder / "nothing.pth")
    tiny = ["--model", "DefocusViT", "--set", f"arch={TINY['DefocusViT']}"]
    assert "there is no layer 2: this network has 2" in refusal(capsys, folder, *tiny, "--layers", 2)
    assert "nothing says what the network is" in refusal(capsys, folder)
    assert "has no head" in refusal(capsys, folder, *tiny, "--target", 3)
    assert "KEY=VALUE" in refusal(capsys, folder, "--model", "DefocusViT", "--set", "causal")
    assert "unexpected keyword argument 'colour'" in refusal(capsys, folder, *tiny, "colour=3")
    assert "--names takes a name for each network" in refusal(capsys, folder, *tiny, "--names", "a", "b")
    assert "a number, or all; got 'some'" in refusal(capsys, folder, *tiny, "--queries", "some")
    assert "two fractions" in refusal(capsys, folder, *tiny, "--cells", "1")
    assert "--against-set is for a second network" in refusal(capsys, folder, *tiny, "--against-set", "a=1")
    assert "three numbers each" in refusal(capsys, folder, *tiny, "--std", "1", "2", "0")
    assert "--device nowhere cannot be used here" in refusal(capsys, folder, *tiny, "--device", "nowhere")
    (folder / "image.png").write_bytes(b"no image")
    assert "cannot be read as an image" in refusal(capsys, folder, *tiny)

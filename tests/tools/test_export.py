"""The command line of exports: what it builds, what it says, what it refuses."""

import json

import pytest
import torch

from backbones.checkpoints import CheckpointError
from backbones.classifier import CLASSIFIERS
from backbones.defocus import DefocusMamba
from backbones.export import ExportError
from backbones.integrations.exportable import find_network
from tests.export.networks import ARCHS, pretended
from tests.testing import load_tool

tool = load_tool("export")
ARCH = ARCHS[DefocusMamba]
UPERNET = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"
DINO = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"


def run(words, network, monkeypatch, tmp_path, **names):
    """The program with ``network`` in the place of what it builds, and a format that runs it."""
    monkeypatch.setitem(tool.FORMATS, "torch", pretended(model=network.model, **names))
    monkeypatch.setattr(tool, "find_network", lambda *given: network)
    return tool.main([*words, "--to", "torch", "--out", str(tmp_path / "net.xml")])


def test_a_run_says_what_was_checked(tmp_path, monkeypatch, capsys):
    network = find_network("DefocusMamba", settings=dict(arch=ARCH, patch_size=8))
    object.__setattr__(network, "about", "tiny")
    assert run(["DefocusMamba", "--check", "2", "8", "24"], network, monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    assert "2 × 8 × 24: differs from PyTorch by 0.0e+00" in said and "wrote " in said
    manifest = json.loads((tmp_path / "net.xml.json").read_text())
    assert [one["batch_height_width"] for one in manifest["checked_against_pytorch"]["sizes"]] == [[2, 8, 24]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_model", "--out", "a.pt2"], "there is no model 'no_such_model'"),
        (["DefocusMamba", "--set", "arch", "--out", "a.pt2"], "an argument of the network is KEY=VALUE"),
        (["DefocusMamba", "--set", "archs=base", "--out", "a.pt2"], "unexpected keyword argument 'archs'"),
        (["defocus_mamba_base", "--adapter", "SimpleFPN", "--set", f"arch={ARCH}", "--out", "a.pt2"], "name a family"),
        (
            ["DefocusMamba", "--adapter", "TapPyramid", "--set", f"arch={ARCH}", "--out", "a.pt2"],
            "TapPyramid takes 4 maps, the backbone gives 1",
        ),
        (["DefocusMamba", "--set", f"arch={ARCH}", "--out", "a.onnx"], "a file of torch ends in .pt2, got a.onnx"),
        (["DefocusMamba", "--checkpoint", "absent.pth", "--out", "a.pt2"], "absent.pth"),
        (["DefocusMamba", "--part", "whole", "--set", f"arch={ARCH}", "--out", "a.pt2"], "--part whole is for configs"),
        (["DefocusMamba", "--size", "0", "8", "--out", "a.pt2"], "--size and --batch take whole numbers from 1 on"),
        (["absent.py", "--out", "a.pt2"], "absent.py"),
    ],
)
def test_what_it_refuses(words, said, capsys):
    pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    if "absent.py" in words:
        pytest.importorskip("mmengine", reason="mmengine is not installed")
    with pytest.raises(SystemExit) as end:
        tool.main([*words, "--to", "torch"])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_classifiers_checkpoint_keeps_its_head(tmp_path):
    model = CLASSIFIERS["DefocusMamba"](ARCH, num_classes=5, patch_size=8).eval()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    network = find_network("DefocusMamba", str(tmp_path / "net.pth"), settings=dict(arch=ARCH, patch_size=8))
    images = network.images(1, 20, 30)
    assert network.outputs == ("logits",)
    with torch.no_grad():
        assert torch.equal(network.model(images), model(images))


def test_a_pyramid_names_its_strides():
    network = find_network("DefocusMamba", settings=dict(arch=ARCH, patch_size=8), adapter="SimpleFPN")
    assert network.outputs == ("stride2", "stride4", "stride8", "stride16")
    assert network.patch == 8 and network.size is None


@pytest.mark.parametrize(
    ("config", "part", "outputs"),
    [
        (DINO, "features", ("stride8", "stride16", "stride32", "stride64")),
        (UPERNET, "features", ("stride8", "stride16", "stride32", "stride64")),
        (UPERNET, "whole", ("logits",)),
    ],
    ids=["dino-features", "upernet-features", "upernet-whole"],
)
def test_configs(config, part, outputs, tmp_path):
    pytest.importorskip("mmdet" if config is DINO else "mmseg", reason="mmdet and mmseg are not installed")
    network = find_network(config, part=part)
    assert network.outputs == outputs
    assert network.mean == (127.5,) * 3 and network.std == (60.0,) * 3 and network.patch == 8
    expected = ("circle", "square", "triangle", "star", "ring", "cross")
    assert part == "features" or network.classes == ("background", *expected)
    if part == "whole":
        images = network.images(1, 40, 56)
        with torch.no_grad():
            logits = network.model(images)
        assert logits.shape == (1, 7, 40, 56)
        weights = network.model.model.state_dict()
        weights = {name: value + 1 if name == "decode_head.conv_seg.bias" else value for name, value in weights.items()}
        torch.save({"state_dict": {"wrong": torch.zeros(1)}}, tmp_path / "net.pth")
        with pytest.raises(CheckpointError, match=r"it lacks \d+ .*; has besides 1 \(wrong\): give that"):
            find_network(config, str(tmp_path / "net.pth"), part=part)
        torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": ("a", "b")}}}, tmp_path / "net.pth")
        again = find_network(config, str(tmp_path / "net.pth"), part=part)
        assert again.classes == ("a", "b")
        with torch.no_grad():
            torch.testing.assert_close(again.model(images), logits + 1)


def test_a_detectors_head_is_refused_with_its_reason():
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    with pytest.raises(ExportError, match=r"DINO .* --part features"):
        find_network(DINO, part="whole")


def test_pools_by_matrices_are_torchs():
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    from backbones.integrations.exportable_mmseg import AveragePool

    for size in ((1, 1), (2, 3), (6, 6)):
        for shape in ((1, 1), (2, 5), (7, 13), (6, 12)):
            x = torch.randn(2, 3, *shape, dtype=torch.float64)
            expected = torch.nn.AdaptiveAvgPool2d(size)(x)
            torch.testing.assert_close(AveragePool(*size)(x), expected)

"""The converter as a command: between frameworks, to a backbone alone, to fewer classes, and what it refuses."""

import contextlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import DefocusMamba, SimpleFPN
from backbones.checkpoints import read_checkpoint, weights_of
from tests.testing import load_tool

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


def convert(*arguments):
    """What the command would leave behind, without the seconds that a process takes to import all frameworks."""
    words, out, err, code = [*map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["tools/convert_checkpoint.py", *words])
        try:
            load_tool("convert_checkpoint").main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def test_the_program(tmp_path):
    torch.save({"model": DefocusMamba(TINY).state_dict()}, tmp_path / "cls.pth")
    words = [sys.executable, "tools/convert_checkpoint.py", tmp_path / "cls.pth", tmp_path / "backbone.pth"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0 and "27 tensors" in result.stdout, result.stderr
    assert (tmp_path / "backbone.pth").exists()


def test_to_detectron2_and_back(tmp_path):
    detector = {f"backbone.{k}": v for k, v in DefocusMamba(TINY).state_dict().items()}
    detector |= {f"neck.{k}": v for k, v in SimpleFPN(64, 32).state_dict().items()}
    heads = {f"roi_head.part{i}": torch.zeros(1) for i in range(12)}
    torch.save({"state_dict": detector | heads}, tmp_path / "mmdet.pth")
    result = convert(tmp_path / "mmdet.pth", tmp_path / "d2.pth", "--to", "detectron2")
    assert result.returncode == 0, result.stderr
    # All of what was left is named.
    assert f"{len(detector)} tensors; left out 12" in result.stdout
    assert all(name in result.stdout for name in heads)
    # Detectron2 reads the weights under this key.
    assert set(read_checkpoint(tmp_path / "d2.pth")) == {"model"}
    result = convert(tmp_path / "d2.pth", tmp_path / "back.safetensors", "--to", "mmdet")
    assert result.returncode == 0 and "left out" not in result.stdout
    back = read_checkpoint(tmp_path / "back.safetensors")
    assert set(back) == set(detector) and all(torch.equal(back[name], detector[name]) for name in back)


@pytest.fixture
def segmentor(tmp_path):
    """A segmentor's file with a moving average, and the average's backbone."""
    backbone = DefocusMamba(TINY).state_dict()
    weights = {f"backbone.net.{k}": v for k, v in backbone.items()}
    weights |= {"backbone.adapter.norms.0.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(2)}
    last = {f"module.{k}": torch.zeros_like(v) for k, v in weights.items()} | {"steps": torch.tensor(3)}
    torch.save({"state_dict": weights, "ema_state_dict": last, "meta": {"iter": 7}}, tmp_path / "iter_7.pth")
    return tmp_path / "iter_7.pth", backbone


@pytest.mark.parametrize("name", ["backbone.pth", "backbone.safetensors"])
def test_a_segmentor_to_its_backbone_alone(segmentor, tmp_path, name):
    path, backbone = segmentor
    result = convert(path, tmp_path / name)
    assert result.returncode == 0, result.stderr
    assert "weights under 'state_dict', a moving average" in result.stdout
    assert "left out 2: backbone.adapter.norms.0.weight, decode_head.conv_seg.weight" in result.stdout
    written = weights_of(read_checkpoint(tmp_path / name))[0]
    assert written.keys() == backbone.keys() and all(torch.equal(written[k], backbone[k]) for k in written)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, name}
    # Readable by whoever the user's mask allows.
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


def test_inspect(segmentor, tmp_path):
    path, _ = segmentor
    lines = convert(path, "--inspect").stdout.splitlines()
    assert lines[0].endswith("under 'state_dict', a moving average") and lines[0].startswith("weights: 29 tensors")
    assert lines[1] == "besides: ema_state_dict, meta"
    assert lines[2].startswith(
        "DefocusMamba under 'backbone.net.': embed_dims=64, depth=2, inner_dims=128, state_dims=16"
    )
    assert lines[-1] == "other parts: backbone, decode_head"
    torch.save({"a": torch.full((2,), torch.nan)}, tmp_path / "other.pth")
    output = convert(tmp_path / "other.pth", "--inspect").stdout
    assert "no De-focus backbone; first names: a" in output and "1 of 1 weights are NaN or infinite: a" in output


def test_a_tensor_of_two_names_is_written_as_safetensors(tmp_path):
    detector = {f"backbone.{k}": v for k, v in DefocusMamba(TINY).state_dict().items()}
    detector |= {f"bbox_head.cls_branches.0.{part}": torch.randn(3) for part in ("weight", "bias")}
    torch.save({"state_dict": detector}, tmp_path / "dino.pth")
    result = convert(tmp_path / "dino.pth", tmp_path / "detrex.safetensors", "--to", "detectron2")
    assert result.returncode == 0, result.stderr
    written = read_checkpoint(tmp_path / "detrex.safetensors")
    for name in ("class_embed.0.weight", "transformer.decoder.class_embed.0.weight"):
        assert torch.equal(written[name], detector["bbox_head.cls_branches.0.weight"])


@pytest.mark.parametrize("adapted", [False, True])
def test_a_pyramid_goes_where_the_detector_has_it(tmp_path, adapted):
    detector = {f"backbone.{k}": v for k, v in DefocusMamba(TINY).state_dict().items()}
    detector |= {f"neck.{k}": v for k, v in SimpleFPN(64, 32).state_dict().items()}
    torch.save({"state_dict": detector}, tmp_path / "mmdet.pth")
    options = ["--adapted"] if adapted else []
    assert convert(tmp_path / "mmdet.pth", tmp_path / "d2.pth", "--to", "detectron2", *options).returncode == 0
    written = read_checkpoint(tmp_path / "d2.pth")["model"]
    name = "backbone.adapter.lateral_convs.0.conv.weight" if adapted else "backbone.simfp_2.4.weight"
    assert torch.equal(written[name], detector["neck.lateral_convs.0.conv.weight"])


@pytest.mark.parametrize("container", [None, "model"])
def test_a_classifier_over_the_classes_that_a_file_lists(tmp_path, container):
    weights = {k.replace("projection", "proj"): v for k, v in DefocusMamba(TINY).state_dict().items()}
    heads = {f"{head}.weight": torch.randn(50, 64) for head in ("head", "head2")}
    heads |= {f"{head}.bias": torch.randn(50) for head in ("head", "head2")}
    average, last = weights | heads, weights | {name: value + 1 for name, value in heads.items()}
    torch.save({"model": last, "model_ema": average}, tmp_path / "21k.pth")
    (tmp_path / "rows.txt").write_text("7\n3\n49\n")
    options = ["--class-map", tmp_path / "rows.txt", *([] if container is None else ["--container", container])]
    assert convert(tmp_path / "21k.pth", tmp_path / "1k.pth", *options).returncode == 0
    written, source = read_checkpoint(tmp_path / "1k.pth")["state_dict"], average if container is None else last
    assert written.keys() == source.keys()
    for name, value in written.items():
        assert torch.equal(value, source[name][[7, 3, 49]] if name in heads else source[name]), name


def test_one_of_two_backbones(tmp_path):
    student, teacher = (DefocusMamba(TINY).state_dict() for _ in range(2))
    both = {f"{who}.backbone.{k}": v for who, w in (("student", student), ("teacher", teacher)) for k, v in w.items()}
    torch.save(both, tmp_path / "semi.pth")
    assert convert(tmp_path / "semi.pth", tmp_path / "out.pth").returncode == 1
    assert convert(tmp_path / "semi.pth", tmp_path / "out.pth", "--prefix", "teacher.backbone").returncode == 0
    written = read_checkpoint(tmp_path / "out.pth")["state_dict"]
    assert written.keys() == teacher.keys() and all(torch.equal(written[k], teacher[k]) for k in teacher)


def test_an_interrupted_write_leaves_what_was_there(segmentor, tmp_path, monkeypatch):
    path, _ = segmentor
    (tmp_path / "out.pth").write_text("mine")
    before = sorted(tmp_path.iterdir())

    def save(content, file):
        Path(file).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        convert(path, tmp_path / "out.pth", "--overwrite")
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "out.pth").read_text() == "mine"


def test_what_is_not_overwritten(segmentor, tmp_path):
    path, _ = segmentor
    (tmp_path / "here.pth").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "rows.txt").write_text("")
    torch.save({"head.weight": torch.zeros(4, 2), "head.bias": torch.zeros(4)}, tmp_path / "classifier.pth")
    broken = {k: v * torch.nan for k, v in DefocusMamba(TINY).state_dict().items()}
    torch.save(broken, tmp_path / "broken.pth")
    new = tmp_path / "new.pth"
    for arguments, message in [
        ((path, tmp_path / "here.pth"), "here.pth exists: choose another name or add --overwrite"),
        ((path, tmp_path / "folder.pth", "--overwrite"), "folder.pth is a folder: name the file"),
        ((path, tmp_path / "new.safetensor"), "must end in .pth, .pt, .safetensors"),
        ((path, tmp_path / "here.pth/new.pth"), "here.pth"),
        ((path, new, "--prefix", "neck"), "no De-focus backbone under 'neck.'; there is one under 'backbone.net.'"),
        ((path, new, "--container", "ema"), "it has no 'ema'"),
        ((tmp_path / "classifier.pth", new), "there is no De-focus backbone"),
        ((tmp_path / "classifier.pth", new, "--class-map", tmp_path / "rows.txt"), "class map is empty"),
        ((tmp_path / "broken.pth", new), "27 of 27 weights are NaN or infinite"),
    ]:
        before = sorted(tmp_path.iterdir())
        result = convert(*arguments)
        assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr, arguments
        assert sorted(tmp_path.iterdir()) == before and (tmp_path / "here.pth").read_text() == "mine"
    assert convert(path, tmp_path / "here.pth", "--overwrite").returncode == 0
    assert len(weights_of(read_checkpoint(tmp_path / "here.pth"))[0]) == 27


def test_refusals(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    result = convert(tmp_path / "other.pth", tmp_path / "out.pth", "--to", "detectron2")
    assert result.returncode == 1 and "no De-focus backbone" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.pth").exists()
    result = convert(tmp_path / "other.pth", tmp_path / "out.pth", "--to", "mmdet", "--class-map", "rows.txt")
    assert result.returncode == 2 and "give one of them" in result.stderr

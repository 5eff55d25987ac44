"""The converter's two ways between frameworks, as commands."""

import subprocess
import sys

import torch

from backbones import DefocusMamba, SimpleFPN
from backbones.checkpoints import read_checkpoint

TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


def convert(*arguments):
    words = [sys.executable, "tools/convert_checkpoint.py", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


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


def test_refusals(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    result = convert(tmp_path / "other.pth", tmp_path / "out.pth", "--to", "detectron2")
    assert result.returncode == 1 and "no De-focus backbone" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.pth").exists()
    result = convert(tmp_path / "other.pth", tmp_path / "out.pth", "--to", "mmdet", "--class-map", "rows.txt")
    assert result.returncode == 2 and "give one of them" in result.stderr

"""Each command of the benchmark runs, and prints what it is for."""

from dataclasses import replace

import pytest

from backbones.benchmark import blocks, clock, models, operations
from backbones.mixers import RetNetBlock, ViTBlock
from backbones.mixers.mamba import MambaArch, MambaBlock
from tests.testing import load_tool

benchmark = load_tool("benchmark")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("scan --length 16", ["scan, forward, L = 16: reference / cpu = ", "(promised ≥ 20)"]),
        ("block --length 32", ["block fp32", "block bf16 autocast / block fp32 = ", "(promised ≤ 1.4)"]),
        ("sweep --lengths 16 32 --plot PLOT", ["L = 16", "L = 32", "PLOT"]),
        ("attention --length 64", ["de-focus causal / sdpa causal = ", "one L×L×heads fp32 matrix: 1/"]),
        ("retention --lengths 32 64", ["L = 32", "L = 64"]),
        ("deformable", ["Deformable attention, forward + backward", "| torch | "]),
        ("backbone --image-size 32 --families DefocusMamba", ["DefocusMamba base: ", " images/s"]),
        (
            "peers --image-size 64 --families DefocusMamba DefocusViT",
            [
                "Backbones, forward, 1 × 64², fp32",
                "training step: DefocusViT base / resnet10t = ",
                "forward: DefocusMamba base / vit_tiny = ",
                "resnet10t: ",
            ],
        ),
        ("peers --image-size 64 --families DefocusMamba --dtype bfloat16", ["torch.bfloat16 under autocast"]),
        ("adapter --image-size 64", ["SimpleFPN: ", "TapPyramid: ", "InteractionAdapter: "]),
    ],
)
def test_commands(words, said, tmp_path, monkeypatch, capsys):
    if "peers" in words:
        pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    if "scan" in words or "deformable" in words:
        monkeypatch.setattr(operations, "DINO_MAPS", ((3, 4), (2, 2)))
    monkeypatch.setitem(MambaBlock.archs, "base", MambaArch(embed_dims=192, inner_dims=384, depth=4, dt_rank=4))
    for block in (ViTBlock, RetNetBlock):
        small = replace(block.archs["base"], depth=1)
        monkeypatch.setitem(block.archs, "base", small)
    peers = {"vit_tiny": "vit_tiny_patch16_224", "resnet10t": "resnet10t"}
    monkeypatch.setattr(models, "PEERS", peers)
    # All that there is to time, whatever this processor knows.
    monkeypatch.setattr(blocks, "choose_bf16", lambda: (True, ""))
    # It takes longer than what is timed here, and this process has much to look through.
    monkeypatch.setattr(clock.gc, "collect", lambda: None)
    plot = tmp_path / "sweep.png"
    benchmark.main([*words.replace("PLOT", str(plot)).split(), "--repeats", "1", "--device", "cpu"])
    out = capsys.readouterr().out
    for text in said:
        assert text.replace("PLOT", str(plot)) in out
    assert plot.exists() == ("--plot" in words)

"""Exports beside PyTorch: each way in a process of its own, and the table of them."""

import json
import sys
from argparse import Namespace

import numpy as np
import pytest

from backbones import DefocusMamba
from backbones.benchmark import exports, run_export
from backbones.benchmark.clock import Row
from backbones.export import PROGRAM
from tests.export.networks import ARCHS


def test_a_way_is_timed_in_a_process_of_its_own():
    settings = dict(arch=ARCHS[DefocusMamba], patch_size=8)
    task = dict(way="eager", family="DefocusMamba", settings=settings, size=[1, 3, 16, 16], threads=1, repeats=2)
    row = exports._row("PyTorch", task)
    assert len(row.seconds) == 2 and min(row.seconds) > 0
    # PyTorch alone takes as much, and no machine has so much for so little.
    assert 50 * 2**20 < row.peak_bytes < 4 * 2**30


def test_onnx_runtime_without_torch(tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[export]")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[export]")
    size = [1, 3, 4, 4]
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name in ("images", "out")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["images"], ["out"])], "abs", sides[:1], sides[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "abs.onnx")
    task = dict(way="onnx", file=str(tmp_path / "abs.onnx"), size=size, threads=1, repeats=3)
    (found,) = run_export.WAYS["onnx"](task)(-np.ones(size, dtype=np.float32))
    assert (found == 1).all()
    monkeypatch.setattr(sys, "argv", ["run_export.py", json.dumps(task)])
    run_export.main()
    assert len(json.loads(capsys.readouterr().out)["seconds"]) == 3


def test_the_table_has_what_was_promised(monkeypatch, capsys):
    peaks = {"PyTorch": 100, "ONNX Runtime, differs by 3e-06": 150}
    monkeypatch.setattr(exports, "_row", lambda name, task: Row(name, None, [peaks[name] / 100], peaks[name] * 2**20))
    checked = {"checked_against_pytorch": {"sizes": [{"difference": 3e-6}]}}
    monkeypatch.setattr(exports, "export", lambda *given, sizes: checked)
    monkeypatch.setattr(exports, "find_target", lambda name: PROGRAM)
    monkeypatch.setitem(DefocusMamba.block.archs, "base", DefocusMamba(ARCHS[DefocusMamba]).blocks[0].mixer.arch)
    exports.exports(
        Namespace(families=["DefocusMamba"], arch="base", image_size=64, batch=1, repeats=1, formats=["onnx"])
    )
    out = capsys.readouterr().out
    assert "time: ONNX Runtime, differs by 3e-06 / PyTorch = 1.50 (promised ≤ 3)" in out
    assert "memory of the process: ONNX Runtime, differs by 3e-06 / PyTorch = 1.50 (promised ≤ 2)" in out

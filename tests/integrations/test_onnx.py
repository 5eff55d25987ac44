"""ONNX files in ONNX Runtime, and OpenVINO's, against the networks they were made of."""

import json

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e .[export]")

import onnx
import onnxruntime

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.export import Exportable, ExportError, export
from backbones.integrations import onnx as ours
from backbones.ops.selective_scan.exported import phase
from tests.export.networks import SIZES, of_module, tiny


@pytest.mark.parametrize(
    "network",
    [tiny(DefocusMamba, section=24, pyramid=True), tiny(DefocusViT), tiny(DefocusRetNet, section=16)],
    ids=["mamba-pyramid", "vit", "retnet"],
)
def test_equals_pytorch(network, tmp_path, monkeypatch):
    traced, function = [], ours._function
    monkeypatch.setattr(ours, "_function", lambda *call: traced.append(call) or function(*call))
    out = tmp_path / "net.onnx"
    manifest = export(network, ours.ONNX, out, sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5
    model = onnx.load(out)
    assert {entry.domain for entry in model.opset_import} == {""} and not model.functions
    # The blocks of a network share what their operation is.
    assert len(traced) == 1
    net = getattr(network.model, "net", network.model)
    assert sum(node.op_type == "Scan" for node in model.graph.node) == len(net.blocks)
    # As anybody runs it, without this package.
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [output.name for output in session.get_outputs()] == list(network.outputs)
    images = network.images(1, 20, 30)
    with torch.no_grad():
        expected = network.model(images)
    for found, truth in zip(session.run(None, {"images": images.numpy()}), expected, strict=True):
        assert torch.allclose(torch.from_numpy(found), truth, atol=2e-5)
    assert json.loads(out.with_name("net.onnx.json").read_text())["versions"]["opset"] == "20"


class Phase(torch.nn.Module):
    """The cosine and sine that the scan turns by, for a sequence of any length."""

    def __init__(self, freq):
        super().__init__()
        self.freq = torch.nn.Parameter(freq)

    def forward(self, tokens):
        return phase(tokens.shape[1], self.freq, 3.0)


def test_far_positions_are_turned_as_exactly_as_near_ones(tmp_path):
    freq = torch.linspace(0.01, 1.0, 7)
    length = torch.export.Dim("length", min=2, max=100_000)
    program = torch.onnx.export(
        Phase(freq).eval(), (torch.zeros(1, 9, 1),), dynamo=True, dynamic_shapes=({1: length},), verbose=False
    )
    program.save(tmp_path / "phase.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "phase.onnx", providers=["CPUExecutionProvider"])
    # 1,024 pixels in patches of 8.
    cosine, sine = session.run(None, {session.get_inputs()[0].name: torch.zeros(1, 16_385, 1).numpy()})
    angle = torch.arange(16_385, dtype=torch.float64)[:, None] / 3 * freq.double()
    assert (torch.from_numpy(cosine) - angle.cos()).abs().max() < 5e-6
    assert (torch.from_numpy(sine) - angle.sin()).abs().max() < 5e-6


def test_weights_beyond_a_files_size_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "LARGEST", 10)
    network = of_module(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), ("map",))
    with pytest.raises(ExportError, match="a file of ONNX holds less than 2: export with --to torch or aot"):
        export(network, ours.ONNX, tmp_path / "net.onnx", sizes=[(1, 8, 8)])
    assert not list(tmp_path.iterdir())


def test_fixed_sizes(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten())
    network = Exportable(module.eval(), ("flat",), "tiny", 8, (0.0,) * 3, (1.0,) * 3, size=(9, 12), batch=3)
    manifest = export(network, ours.ONNX, tmp_path / "net.onnx")
    assert manifest["inputs"]["images"]["shape"] == [3, 3, 9, 12]
    checked = manifest["checked_against_pytorch"]["sizes"]
    assert [one["batch_height_width"] for one in checked] == [[3, 9, 12]]


def test_openvino(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    from backbones.integrations.openvino import OPENVINO

    manifest = export(tiny(DefocusMamba, section=24), OPENVINO, tmp_path / "net.xml", sizes=SIZES)
    assert sorted(manifest["files"]) == ["net.bin", "net.xml"]
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5

"""Programs of `torch.export`: of any size, equal to the network, and of PyTorch's own operators alone."""

import os

import pytest
import torch

from backbones import DefocusMamba
from backbones.export import PACKAGE, PROGRAM, ExportError, export
from tests.export.networks import SIZES, of_module, tiny

needs_scan = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="exports need PyTorch 2.11 or newer"
)


@needs_scan
def test_program(tmp_path):
    network = tiny(DefocusMamba, depth=1, section=24)
    out = tmp_path / "net.pt2"
    manifest = export(network, PROGRAM, out, sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5
    program = torch.export.load(out)
    graphs = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "defocus" in name]
    assert "scan" in called


@needs_scan
@pytest.mark.skipif("ALL_EXPORTS" not in os.environ, reason="its compiler takes long; ALL_EXPORTS=1 runs it")
def test_package(tmp_path):
    network = of_module(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.GELU()), ("map",))
    manifest = export(network, PACKAGE, tmp_path / "net.pt2", sizes=[(1, 8, 8), (2, 5, 7)])
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5


@needs_scan
def test_what_inductor_cannot_compile_is_one_error(tmp_path, monkeypatch):
    def fail(*given, **named):
        raise KeyError("s14")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    network = of_module(torch.nn.Sequential(torch.nn.Identity()), ("map",))
    with pytest.raises(ExportError, match=r"does not compile the network \(KeyError\).*--to torch, --to onnx"):
        export(network, PACKAGE, tmp_path / "net.pt2", sizes=[(1, 8, 8)])
    assert not list(tmp_path.iterdir())

"""Programs of `torch.export`: of any size, equal to the network, and of PyTorch's own operators alone."""

import pytest
import torch

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.export import PACKAGE, PROGRAM, export
from tests.export.networks import SIZES, tiny

needs_scan = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="exports need PyTorch 2.11 or newer"
)


@needs_scan
@pytest.mark.parametrize(
    "network",
    [tiny(DefocusMamba, section=24, pyramid=True), tiny(DefocusViT), tiny(DefocusRetNet)],
    ids=["mamba-pyramid", "vit", "retnet"],
)
def test_program(network, tmp_path):
    out = tmp_path / "net.pt2"
    manifest = export(network, PROGRAM, out, sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5
    program = torch.export.load(out)
    graphs = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "defocus" in name]
    assert "scan" in called


@needs_scan
@pytest.mark.slow
def test_package(tmp_path):
    manifest = export(tiny(DefocusMamba, section=24), PACKAGE, tmp_path / "net.pt2", sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5

"""Programs of `torch.export` and packages: of any size, equal to the network, of PyTorch's own operators alone."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from backbones import DefocusMamba, DefocusRetNet, DefocusViT
from backbones.export import PACKAGE, PROGRAM, ExportError, export
from backbones.export.program import trace_network
from backbones.ops.exported import without_scan
from backbones.ops.selective_scan.levels import CHUNKS, GROUPS, TOKENS
from tests.export.networks import SIZES, of_module, tiny

needs_scan = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="exports need PyTorch 2.11 or newer"
)
compiles = pytest.mark.skipif(
    "ALL_EXPORTS" not in os.environ, reason="compiling takes minutes; ALL_EXPORTS=1 runs it, as the weekly job does"
)


def operators(program):
    """Names of all that a program calls, in its loops too."""
    graphs = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}


@needs_scan
def test_program(tmp_path):
    network = tiny(DefocusMamba, depth=1, section=24)
    out = tmp_path / "net.pt2"
    manifest = export(network, PROGRAM, out, sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5
    called = operators(torch.export.load(out))
    assert not [name for name in called if "defocus" in name]
    assert "scan" in called


@needs_scan
def test_what_is_compiled_has_a_while_loop_in_the_place_of_a_scan():
    network = tiny(DefocusViT)
    with without_scan():
        program = trace_network(network)
    called = operators(program)
    assert "while_loop" in called and "scan" not in called
    program.example_inputs = None
    run = program.module()
    for size in SIZES:
        images = network.images(*size)
        with torch.no_grad():
            torch.testing.assert_close(run(images)[0], network.model(images)[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("section", [None, 24, 128, 2048])
def test_no_two_sizes_are_alike_that_a_compiler_is_shown(section):
    batch, height, width = tiny(DefocusMamba, section=section).shown
    side = section or 8
    blocks = (height * width // 64 - 1) // (GROUPS * CHUNKS * TOKENS) + 1
    assert height % side == 0 and width % side == 0
    assert 1 < batch < min(height // side, width // side, blocks)


@needs_scan
@compiles
@pytest.mark.parametrize(
    "network",
    [tiny(DefocusMamba, section=24, pyramid=True), tiny(DefocusViT), tiny(DefocusRetNet, section=16)],
    ids=["mamba-pyramid", "vit", "retnet"],
)
def test_package(network, tmp_path):
    out = tmp_path / "net.pt2"
    manifest = export(network, PACKAGE, out, sizes=SIZES)
    assert max(one["difference"] for one in manifest["checked_against_pytorch"]["sizes"]) < 2e-5
    images = network.images(1, 20, 30)
    with torch.inference_mode():
        found = torch._inductor.aoti_load_package(str(out))(images)
        for output, expected in zip(found, network.model(images), strict=True):
            torch.testing.assert_close(output, expected, atol=2e-5, rtol=0)


@needs_scan
@compiles
def test_the_documents_program_in_cpp_runs_a_package(tmp_path):
    network = of_module(torch.nn.Conv2d(3, 4, 8, stride=8), ("map",))
    export(network, PACKAGE, tmp_path / "net.pt2", sizes=SIZES[:1])
    page = Path("docs/export.md").read_text()
    (tmp_path / "run.cpp").write_text(re.search(r"```cpp\n(.*?)```", page, re.S)[1])
    build = re.search(r"^g\+\+ .*?run\.cpp.*?$", page.replace("\\\n", " "), re.M)[0]
    environment = os.environ | {"TORCH": str(Path(torch.__file__).parent)}
    subprocess.run(build, shell=True, check=True, cwd=tmp_path, env=environment)
    images = network.images(2, 49, 37)
    torch.save(images, tmp_path / "images.pt")
    subprocess.run(["./run", "net.pt2", "images.pt", "outputs.pt"], check=True, cwd=tmp_path)
    (output,) = torch.load(tmp_path / "outputs.pt")
    with torch.inference_mode():
        torch.testing.assert_close(output, network.model(images), atol=1e-5, rtol=0)


@needs_scan
def test_without_a_compiler_the_cure_is_named(tmp_path):
    network = of_module(torch.nn.Sequential(torch.nn.Identity()), ("map",))
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ExportError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+"),
    ):
        export(network, PACKAGE, tmp_path / "net.pt2", sizes=[(1, 8, 8)])
    assert not list(tmp_path.iterdir())


@needs_scan
def test_what_inductor_cannot_compile_is_one_error(tmp_path, monkeypatch):
    def fail(*given, **named):
        raise KeyError("s14")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    network = of_module(torch.nn.Sequential(torch.nn.Identity()), ("map",))
    with pytest.raises(ExportError, match=r"does not compile the network \(KeyError: 's14'\).*--to torch, --to onnx"):
        export(network, PACKAGE, tmp_path / "net.pt2", sizes=[(1, 8, 8)])
    assert not list(tmp_path.iterdir())

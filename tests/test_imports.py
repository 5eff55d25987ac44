"""Who imports whom: no circles, one direction, frameworks at the edge. Read from the source, also inside functions."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "defocus_commands", "defocus_eval", "studies")
FRAMEWORKS = {"mmengine", "mmcv", "mmdet", "mmseg", "detectron2", "detrex", "timm", "transformers", "accelerate"}
# The direction in which data flows: each may import those before it.
ORDER = ("ops", "layers", "mixers", "defocus", "adapters")


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path.relative_to(ROOT)): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Names that a file imports, `package.module` where what it takes from a package is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in full}
    return found


GRAPH = {name: imported(path) for name, path in FILES.items()}


def test_the_packages_are_found():
    assert {"backbones.defocus", "backbones.ops.dispatch", "defocus_eval.files", "studies.transfer"} <= FILES.keys()
    assert "backbones.mixers" in GRAPH["backbones.defocus"] and "torch" in GRAPH["backbones.defocus"]


def test_no_circle_of_imports():
    graph = {name: {other for other in GRAPH[name] if other in FILES and other != name} for name in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ORDER)
def test_imports_flow_one_way(room):
    allowed = {*ORDER[: ORDER.index(room) + 1], "torch"}
    for name in FILES:
        if name.split(".")[1:2] == [room]:
            ours = {other.split(".")[1] for other in GRAPH[name] if other.startswith("backbones.")}
            assert ours <= allowed, f"{name} imports of {', '.join(sorted(ours - allowed))}"


def test_frameworks_stay_at_the_edge():
    for name in FILES:
        # A study runs mmdet's own tool.
        if name.startswith(("backbones.integrations", "studies")):
            continue
        taken = {other.partition(".")[0] for other in GRAPH[name]} & FRAMEWORKS
        # mmcv's own kernel is one backend of deformable attention.
        if name.startswith("backbones.ops.deformable_attention"):
            taken -= {"mmcv"}
        assert not taken, f"{name} imports {', '.join(sorted(taken))}"


def test_scores_need_no_trainer_and_no_pytorch():
    for name in FILES:
        if name.startswith("defocus_eval"):
            roots = {other.partition(".")[0] for other in GRAPH[name]}
            assert not roots & {"torch", "backbones", "studies"}, name

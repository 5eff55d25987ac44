"""Commands and Python of the documents: run as they stand there, or marked with a reason and read by their programs."""

import ast
import glob
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from backbones.classifier import DefocusMambaClassifier
from backbones.defocus import FAMILIES
from backbones.mixers.mamba import MambaBlock
from tests.defocus_eval.training_logs import training_lines, write_log
from tests.doc_programs import build, look_at
from tests.documents import PAGES, ROOT, blocks, commands, inline_commands
from tests.testing import load_tool

LANGUAGES = {"sh", "python", "cpp", "yaml", "text", "bibtex"}
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
INLINE = [(page, line) for page in PAGES for line in inline_commands(page)]
# A shape in a comment, which is what the line makes.
SHAPE = re.compile(r"#.*?\((\d+(?:, \d+)+)\)")


SHALLOW = replace(MambaBlock.archs["base"], depth=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that commands name: small ones, of the tests' data."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("detectron2_projects", "docs", "mmdet_configs", "mmseg_configs", "results", "tests", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "transformers_recipes").symlink_to(ROOT / "transformers_recipes")
    (folder / "fsdp.json").write_text('{"transformer_layer_cls_to_wrap": ["MambaBlock"]}')
    data = ROOT / "tests/data/evaluation"
    coco, log = folder / "data/coco", folder / "work_dirs/run/1/vis_data/scalars.json"
    for path in (coco / "annotations", coco / "val2017", log.parent):
        path.mkdir(parents=True)
    shutil.copy(data / "instances.json", coco / "annotations/instances_val2017.json")
    shutil.copy(data / "mmdet_coco.segm.json", folder / "val.segm.json")
    for image in json.loads((data / "instances.json").read_text())["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(coco / "val2017" / Path(image["file_name"]).name)
    write_log(log, training_lines(10, 100))
    network = DefocusMambaClassifier(SHALLOW, num_classes=1000)
    torch.save({"model": network.state_dict()}, folder / "defocus_mamba_base_cls.pth")
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_fence_says_its_language(block):
    assert block.language in LANGUAGES
    assert block.reason is None or block.language in ("sh", "python")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands(block, files, monkeypatch):
    found = commands(block.text)
    assert found
    monkeypatch.chdir(files)
    for words in found:
        look_at(words)
    if block.reason is None:
        for words in found:
            run(words, monkeypatch)


@pytest.mark.parametrize("page, line", INLINE, ids=lambda value: str(getattr(value, "name", value)))
def test_commands_in_the_text(page, line):
    """One that is cut short, or only named, has options that its program knows."""
    for words in commands(line.partition("…")[0]):
        if "…" in line and len(words) < 3:
            continue
        try:
            look_at(words)
        except pytest.fail.Exception as failure:
            usage = str(failure).partition("usage:")[2]
            assert "required" in usage or "expected" in usage, failure
            assert all(word in usage for word in words if word.startswith("--")), failure


@pytest.fixture
def families():
    """A family that a document defines does not stay."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=str)
def test_python(page, files, families, monkeypatch):
    # Of the published widths; what the documents show does not hang on the depth.
    monkeypatch.setitem(MambaBlock.archs, "base", SHALLOW)
    # A block goes on with what those before it on the page have made.
    names = {}
    for block in (block for block in PYTHON if block.page == page):
        tree = ast.parse(block.text)
        if "_base_ = " in block.text:
            build_config(block, files)
        elif block.reason is None:
            with monkeypatch.context() as patch:
                patch.chdir(files)
                execute(tree, block, names)


def test_the_workflows_call_what_is_there():
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    found = [
        words
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        for words in commands(step.get("run", ""))
    ]
    assert [".ci/run"] in found and [".ci/weekly"] in found
    for words in found:
        look_at(words)


def run(words, monkeypatch):
    """A program of ours in this process, with words as a shell makes them."""
    assert words[0] == "python" and words[1].startswith("tools/"), f"mark it as not run: {words}"
    words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    monkeypatch.setattr(sys, "argv", words[1:])
    assert load_tool(Path(words[1]).stem).main() == 0


def build_config(block, files):
    """A config of mmdet or mmseg in a folder beside `common`: its model, without memory for the weights."""
    framework = "mmseg" if "mmseg" in block.text else "mmdet"
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    folder = files / f"line_{block.line}"
    folder.mkdir()
    if not (files / "common").exists():
        (files / "common").symlink_to(ROOT / "mmdet_configs/common")
    (folder / "config.py").write_text(block.text)
    build(framework, folder / "config.py")


def execute(tree, block, namespace):
    """Statement by statement; what a line makes has the shape that its comment says, the last of several maps."""
    lines = block.text.splitlines()
    for statement in tree.body:
        code = compile(ast.Module([statement], []), f"{block}", "exec")
        exec(code, namespace)
        said = SHAPE.search(lines[statement.end_lineno - 1])
        if said and isinstance(statement, ast.Assign):
            value = namespace[statement.targets[0].id]
            value = value if isinstance(value, torch.Tensor) else value[-1]
            assert tuple(value.shape) == tuple(map(int, said[1].split(", "))), block

"""The demos' programs: what they do again, and what they hand to the next step, without training."""

import importlib
import itertools
import json
import os
import sys
import types
from pathlib import Path

import pytest
import yaml

from defocus_eval.logs import read_logs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load_demo(tmp_path, monkeypatch):
    """Loads a demo that works in a folder of its own and runs no command; gives it and the commands by their title."""

    def load(name):
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        for folder in ("tools", "mmdet_configs", "mmseg_configs", "transformers_recipes"):
            (tmp_path / folder).symlink_to(ROOT / folder)
        demo = importlib.import_module(name)
        commands = {}

        def run(command, env=None):
            commands[Path(command[1]).name] = command
            return types.SimpleNamespace(returncode=0)

        monkeypatch.setattr(demo, "ROOT", tmp_path)
        steps = importlib.import_module("steps")
        # It builds the kernels, for which it runs a compiler.
        monkeypatch.setattr(steps, "fastest_precision", list)
        monkeypatch.setattr(sys, "argv", [name])
        monkeypatch.setattr(steps.subprocess, "run", run)
        monkeypatch.chdir(tmp_path)
        return demo, commands

    return load


def test_the_curves_of_a_resumed_demo_are_those_of_all_its_parts(load_demo, monkeypatch):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    demo, commands = load_demo("demo")
    work_dir = Path("work_dirs/demo/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes")
    for part, steps in (("20250101_000000", (50, 100, 150)), ("20250101_001000", (150, 200))):
        log = work_dir / part / "vis_data/scalars.json"
        log.parent.mkdir(parents=True)
        log.write_text("".join(json.dumps(dict(step=step, loss=1.0 + (part[-4] == "1"))) + "\n" for step in steps))
    demo.main()
    show_results = importlib.import_module("defocus_commands.show_results")
    drawn = []
    monkeypatch.setattr(show_results, "show_results", lambda logs, **_: drawn.append(logs) or [])
    monkeypatch.setattr(sys, "argv", [str(word) for word in commands["show_results.py"][1:]])
    show_results.main()
    assert read_logs(drawn[0]).losses == {50: 1.0, 100: 1.0, 150: 2.0, 200: 2.0}


@pytest.mark.parametrize(("name", "package"), [("demo", "mmdet"), ("demo_seg", "mmseg")])
def test_a_demo_ends_with_the_official_table_and_the_page(load_demo, monkeypatch, name, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    demo, commands = load_demo(name)
    demo.main()
    assert list(commands)[-2:] == ["evaluate.py", "report.py"]
    official, page = ([str(word) for word in commands[f"{tool}.py"][2:]] for tool in ("evaluate", "report"))
    told = importlib.import_module("defocus_commands.report")._parser().parse_args(page)
    # Both score the same files.
    assert official[: official.index("--json")] == page[: page.index("--images")]
    assert told.images == Path("work_dirs/shapes/val") and told.out.name == "report.html"
    assert told.checkpoint.suffix == ".pth" and Path(told.config).is_file()
    assert (told.classes or [])[:2] == (["background", "circle"] if name == "demo_seg" else [])


@pytest.mark.parametrize(
    ("name", "config", "checkpoint", "predictions"),
    [
        (
            "demo",
            "work_dirs/demo/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes",
            "epoch_4.pth",
            "predictions.bbox.json",
        ),
        (
            "demo_seg",
            "work_dirs/demo_seg/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes",
            "iter_3600.pth",
            "predictions",
        ),
    ],
)
def test_what_a_demo_trains_is_scored_and_drawn(load_demo, name, config, checkpoint, predictions):
    """The folder in which one step leaves something is the one where the next looks."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    demo, commands = load_demo(name)
    demo.main()
    words = {tool: [str(word) for word in command] for tool, command in commands.items()}
    train, test = words["train.py"], words["test.py"]
    show = words["show_results.py" if name == "demo" else "show_segmentation.py"]
    assert train[2] == test[2] and Path(train[2]).stem == Path(config).name
    assert train[3:6] == ["--work-dir", config, "--resume"]
    assert test[3] == f"{config}/{checkpoint}"
    written = test[-1].removeprefix("test_evaluator.outfile_prefix=")
    assert written == f"{config}/predictions"
    options = dict(itertools.pairwise(show))
    assert options["--predictions"] == f"{config}/{predictions}" and options["--out"] == config
    assert options["--images"] == "work_dirs/shapes/val"
    truth = "annotations/instances_val.json" if name == "demo" else "semantic/val"
    assert options["--annotations"] == f"work_dirs/shapes/{truth}"
    assert words["make_shapes.py"][2] == "work_dirs/shapes"


def test_a_demo_trains_the_mixer_that_is_asked_for(load_demo, monkeypatch):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    demo, commands = load_demo("demo")
    monkeypatch.setattr(sys, "argv", ["demo", "--family", "vit"])
    demo.main()
    assert Path(commands["train.py"][2]).stem == "dino-4scale_defocus-vit-tiny_1xb2-4e_shapes"


def test_transformers_demo_draws_and_scores_what_its_recipe_leaves(load_demo, monkeypatch):
    demo, commands = load_demo("demo_transformers")
    demo.main()
    words = {tool: [str(word) for word in command] for tool, command in commands.items()}
    recipe = yaml.safe_load(Path(words["train_transformers.py"][2]).read_text())
    assert words["train_transformers.py"][3:] == ["--resume"]
    assert words["make_shapes.py"][2] == "work_dirs/shapes"
    assert recipe["train_images"] == "work_dirs/shapes/train" and recipe["val_images"] == "work_dirs/shapes/val"
    for tool in ("show_results.py", "evaluate.py", "report.py"):
        options = dict(itertools.pairwise(words[tool]))
        assert options["--annotations"] == recipe["val_annotations"]
        assert options["--predictions"] == f"{recipe['output_dir']}/predictions.bbox.json"
    assert options["--checkpoint"] == f"{recipe['output_dir']}/model.safetensors"
    commands.clear()
    scores = Path(recipe["output_dir"]) / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.touch()
    demo.main()
    assert "train_transformers.py" not in commands and "report.py" in commands


@pytest.mark.parametrize(("predicted", "scored"), [(100, True), (300, False)])
def test_detectron2s_demo_scores_again_what_an_earlier_checkpoint_predicted(load_demo, monkeypatch, predicted, scored):
    """A demo that was killed in its last evaluation has its final checkpoint beside predictions of half time."""
    demo, commands = load_demo("demo_detectron2")
    values = dict(root="shapes", test_json="val.json", test_images="val")
    config = types.SimpleNamespace(
        data=types.SimpleNamespace(**values), train=types.SimpleNamespace(output_dir="work_dirs/demo_d2")
    )
    package, module = types.ModuleType("detectron2"), types.ModuleType("detectron2.config")
    package.__spec__ = importlib.machinery.ModuleSpec("detectron2", None)
    module.LazyConfig = types.SimpleNamespace(load=lambda path: config)
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.config", module)
    for name, seconds in (("model_final.pth", 200), ("inference/coco_instances_results.json", predicted)):
        path = Path("work_dirs/demo_d2") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (seconds, seconds))
    demo.main()
    assert ("--eval-only" in commands.get("train_detectron2.py", [])) == scored
    assert "work_dirs/demo_d2/inference/coco_instances_results.json" in commands["show_results.py"]

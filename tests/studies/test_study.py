"""A study end to end, with two steps of training a network, and what it does when it is interrupted."""

import json
import math
import os
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from studies import __main__ as program
from studies.measures import deep_layer
from studies.runs import Run, RunFailed, read_result, run_missing
from studies.scales import SCALES, Scale
from studies.training import Settings, identity, make_result, train
from studies.variants import SHOWN, VARIANTS

TINY = Settings(
    side=48,
    steps=2,
    train_images=24,
    test_images=20,
    measured_images=1,
    batch=4,
    learning_rate=1e-3,
    patch_size=16,
    sizes=dict(
        DefocusViT=dict(embed_dims=16, depth=3, num_heads=2),
        DefocusMamba=dict(embed_dims=16, inner_dims=64, depth=3, dt_rank=2),
        DefocusRetNet=dict(embed_dims=16, depth=3, num_heads=2, value_dims=16, ffn_dims=16),
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of every network, each result made as a child process of it is told to."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "quick", Scale(TINY, tuple(VARIANTS), seeds=1))
        patch.setattr(torch, "set_num_threads", lambda count: None)
        for key in VARIANTS:
            patch.setattr(sys, "argv", ["study", "--scale", "quick", "--out", str(folder), "--variant", key])
            program.main()
        # No result is missing, so this starts no process.
        patch.setattr(sys, "argv", ["study", "--scale", "quick", "--out", str(folder)])
        patch.setattr("subprocess.Popen", None)
        patch.setattr("signal.signal", lambda number, handler: None)
        program.main()
    return folder


@pytest.mark.parametrize("key", VARIANTS)
def test_every_network_trains_and_is_measured(finished, key):
    result = read_result(Run(key, 0), finished, identity(VARIANTS[key], TINY))
    assert 0 <= result["accuracy"] <= 1 and math.isfinite(result["loss"])
    assert len(result["layers"]) == 3
    for layer in result["layers"]:
        assert all(math.isfinite(value) for value in layer.values())
        # Of nine tokens on the image, eight others.
        assert 1 <= layer["effective_tokens"] <= 8 and 1 <= layer["class_effective_tokens"] <= 9
        assert 0 < layer["top_share"] <= 1 and layer["gradient"] > 0
        assert 16 <= layer["mean_distance"] <= 48 * 2**0.5


def test_the_page_and_pictures(finished):
    page = (finished / "results.md").read_text()
    for key, variant in VARIANTS.items():
        accuracy = json.loads((finished / f"{key}_seed0.json").read_text())["accuracy"]
        assert f"| {variant.title} " in page
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {variant.title} ") and "−" not in line]
        assert row.split("|")[2].strip() == f"{100 * accuracy:.1f}"
    assert (finished / "maps.jpg").read_bytes().startswith(b"\xff\xd8")
    assert (finished / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert set(SHOWN) <= VARIANTS.keys()


def test_a_study_that_is_cut_short_shows_what_it_has(finished, tmp_path, monkeypatch):
    for key in ("vit-plain", "mamba-fixed"):
        for suffix in (".json", ".pth"):
            shutil.copy(Run(key, 0).file(finished, suffix), tmp_path)
    monkeypatch.setattr(program, "run_missing", stop)
    with pytest.raises(KeyboardInterrupt):
        program.run_study(Scale(TINY, tuple(VARIANTS), seeds=2), tmp_path, [], jobs=1)
    page = (tmp_path / "results.md").read_text()
    assert page.startswith("2 runs") and "ViT, plain" in page and "Mamba, plain" not in page
    assert (tmp_path / "maps.jpg").exists()


def stop(*arguments, **options):
    raise KeyboardInterrupt


def test_the_variants_are_what_they_are_called():
    def trained(key):
        names = VARIANTS[key].build(TINY.sizes[VARIANTS[key].family], num_classes=4, patch_size=16).named_parameters()
        return {name for name, parameter in names if parameter.requires_grad}

    filters = dict(vit={"log_rate", "freq"}, mamba={"A_log", "freq"}, retnet={"log_rate", "freq"})
    for family, names in filters.items():
        full = trained(f"{family}-defocus")
        assert {name.split(".")[-1] for name in full} >= names
        learned = full - trained(f"{family}-fixed")
        assert {name.split(".")[-1] for name in learned} == names
        heads = full - trained(f"{family}-one-loss")
        assert {name.split(".")[0] for name in heads} == {"head2"}
        # Mamba itself learns a decay.
        plain = {"A_log"} if family == "mamba" else set()
        assert {name.split(".")[-1] for name in trained(f"{family}-plain")} & names == plain
    assert VARIANTS["vit-weak-drop"].drop_path[1] < VARIANTS["vit-defocus"].drop_path[1]
    assert not VARIANTS["vit-2d"].mixer["causal"]


def test_a_seed_gives_the_same_network_again_and_another_does_not():
    variant = VARIANTS["mamba-defocus"]
    (first, model), (again, same), (other, _) = (make_result("x", variant, seed, TINY) for seed in (0, 0, 1))
    assert first["loss"] == again["loss"] != other["loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values()))


@pytest.mark.parametrize(("key", "rates"), [("vit-defocus", [0.1, 0.7]), ("vit-weak-drop", [0.0, 0.1])])
def test_drop_path_rises_over_the_training(key, rates):
    variant = VARIANTS[key]
    model = variant.build(TINY.sizes[variant.family], num_classes=4, patch_size=TINY.patch_size)
    found = [model.blocks[-1].drop_path.drop_prob for _ in train(model, variant, TINY, seed=0)]
    assert found == pytest.approx(rates)


def test_the_deep_layer_is_the_last_but_one():
    assert [deep_layer(depth) for depth in (1, 2, 12)] == [0, 0, 10]


# A stand-in for a training: writes the settings it is given, or takes long, or fails once another one takes long.
CHILD = """
import json, os, pathlib, sys, time
folder, settings, fails, _, variant, _, seed = sys.argv[1:]
with open(f"{folder}/made.txt", "a") as file:
    print(variant, seed, file=file)
slow = pathlib.Path(folder, "slow.pid")
if variant == "slow":
    slow.write_text(f"{os.getpid()}\\n")
    time.sleep(60)
while fails == "after slow" and not (slow.exists() and slow.read_text().endswith("\\n")):
    time.sleep(0.01)
if variant == fails or fails == "after slow":
    sys.exit("out of luck")
result = dict(settings=json.loads(settings), seconds=1.0, accuracy=0.5)
pathlib.Path(f"{folder}/{variant}_seed{seed}.json").write_text(json.dumps(result))
"""


def run_children(folder, runs, settings, fails="", jobs=2):
    command = [sys.executable, "-S", "-c", CHILD, str(folder), json.dumps(settings), fails]
    run_missing(dict.fromkeys(runs, settings), folder, command, jobs, describe=lambda result: str(result["accuracy"]))
    return sorted((folder / "made.txt").read_text().split("\n")[:-1])


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, capsys):
    runs = [Run(key, seed) for seed in (0, 1) for key in "abc"]
    with pytest.raises(RunFailed, match=r"c, seed 0, ended with status 1(.|\n)*out of luck"):
        run_children(tmp_path, runs, {"steps": 1}, fails="c", jobs=1)
    assert (tmp_path / "made.txt").read_text() == "a 0\nb 0\nc 0\n"
    # Half a file is no result.
    (tmp_path / "b_seed0.json").write_text('{"settings": {"st')
    made = run_children(tmp_path, runs, {"steps": 1})
    assert made == sorted(["a 0", "b 0", "b 0", "c 0", "c 0", "a 1", "b 1", "c 1"])
    assert "1 of 6 runs were done before" in capsys.readouterr().out
    # Results of other settings are made again.
    (tmp_path / "made.txt").unlink()
    assert len(run_children(tmp_path, runs, {"steps": 2})) == 6


def test_what_is_under_way_ends_with_the_study(tmp_path):
    with pytest.raises(RunFailed, match="out of luck"):
        run_children(tmp_path, [Run("slow", 0), Run("a", 0)], {}, fails="after slow")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.pid").read_text()), 0)


def test_settings_that_differ_are_another_result():
    plain = identity(VARIANTS["vit-plain"], TINY)
    assert plain == json.loads(json.dumps(plain))
    assert plain != identity(VARIANTS["vit-plain"], replace(TINY, steps=3))
    assert plain != identity(VARIANTS["vit-fixed"], TINY)

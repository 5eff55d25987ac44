"""Recipes and the command line."""

import pytest

pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers_training import arguments

RECIPE = """
train_annotations: train.json
val_annotations: val.json
image_size: [96, 128]
backbone: {model_type: defocus_mamba, arch: {embed_dims: 64}}
head: d_fine
learning_rate: 3.0e-4
precision: fp32
resume: true
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def parse(*words):
    return arguments.parse([str(word) for word in words], "")


def test_the_command_line_replaces_what_the_recipe_says(recipe, tmp_path):
    told = ["--head", "detr", "--learning_rate", "0.1", "--resume", "false", "--output_dir", tmp_path]
    data, model, run = parse(recipe, *told)
    assert data.size == (96, 128) and data.train_annotations == "train.json"
    assert model.backbone == {"model_type": "defocus_mamba", "arch": {"embed_dims": 64}} and model.head == "detr"
    assert (run.learning_rate, run.resume, run.bf16, run.output_dir) == (0.1, False, False, str(tmp_path))


def test_one_side_makes_a_square(recipe):
    assert parse(recipe, "--image_size", "64")[0].size == (64, 64)


@pytest.mark.parametrize(("faster", "precision", "bf16"), [(True, "auto", True), (False, "auto", False)])
def test_bf16_where_it_was_measured_to_be_faster(monkeypatch, recipe, faster, precision, bf16):
    monkeypatch.setattr(arguments.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(arguments, "choose_bf16", lambda: (faster, "measured"))
    assert parse(recipe, "--precision", precision)[2].bf16 is bf16


def test_several_processes_do_not_measure_each_for_itself(monkeypatch, recipe):
    monkeypatch.setattr(arguments.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(arguments, "choose_bf16", lambda: pytest.fail("measured"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert arguments._choose_bf16() is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp8"], "precision must be one of auto, fp32, bf16, got 'fp8'"),
        (["--image_size", "1", "2", "3"], "image_size takes a side, or height and width"),
        (["--backbone", "{"], "backbone is no JSON"),
        (["--backbone", "[1]"], "backbone must map names to values"),
        (["--backbone", "{}"], "nothing says what learns"),
        (["--model", "folder"], "model is a whole model, to which backbone and head_options do nothing"),
    ],
)
def test_values_that_mean_nothing_are_refused(recipe, words, message):
    with pytest.raises(ValueError, match=message):
        parse(recipe, *words)


def test_a_name_that_does_nothing_is_refused(recipe):
    with pytest.raises(ValueError, match="--learning_rat3"):
        parse(recipe, "--learning_rat3", "1")


def test_a_recipe_that_is_none_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="is no mapping of names to values"):
        parse(path)
    with pytest.raises(ValueError, match="cannot be read"):
        parse(tmp_path / "absent.yaml")

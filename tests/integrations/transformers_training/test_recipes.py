"""Every recipe is read whole, and its model is built and fits its images."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.24.0", reason="transformers 5.24 is not installed")

from backbones.integrations.transformers_training import heads
from backbones.integrations.transformers_training.arguments import parse

RECIPES = sorted((Path(__file__).parents[3] / "transformers_recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_model(recipe):
    told = ["--precision", "fp32", "--train_annotations", "train.json", "--val_annotations", "val.json"]
    data, model, _ = parse([str(recipe), *told], "")
    net = heads.build_model(model.head, heads.find_task(model.head, False), model.backbone, model.head_options, ["a"])
    heads.check_size(model.head, net, data.size)
    assert model.head in recipe.stem and model.backbone["model_type"] in recipe.stem

"""The study's classifier as the backbone of the demo's detector."""

from pathlib import Path

import pytest
import torch

from studies.transfer import CLASSIFIER, CONFIG, DETECTORS, PRETRAINING, RULE, USE, detectors_table, overrides
from studies.variants import VARIANTS

CHECKPOINT = Path("classifier.pth")


def test_the_rule_is_that_of_twice_the_resolution():
    assert 2 * PRETRAINING.side == USE
    assert dict(section_size=80, rope_scale=4.0, delta_scale=2.0) == RULE


def test_each_detector_has_its_part_of_the_rule():
    def backbone(name):
        found = overrides(name, CHECKPOINT, seed=3)
        assert found["randomness.seed"] == 3
        start = "model.backbone."
        return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}

    start = {"init_cfg.type": "Pretrained", "init_cfg.checkpoint": CHECKPOINT}
    assert backbone("scratch") == {}
    assert backbone("scratch-rule") == RULE
    assert backbone("pretrained") == start
    assert backbone("pretrained-scales") == {"rope_scale": 4.0, "delta_scale": 2.0, **start}
    assert backbone("pretrained-rule") == {**RULE, **start}


@pytest.mark.parametrize("name", ["scratch", "pretrained-rule"])
def test_the_detectors_backbone_takes_the_classifiers_weights(name, tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmdet.registry import MODELS
    from mmengine.config import Config

    variant = VARIANTS[CLASSIFIER.variant]
    model = variant.build(PRETRAINING.sizes[variant.family], num_classes=4, patch_size=PRETRAINING.patch_size)
    torch.save({"model": model.state_dict()}, tmp_path / "classifier.pth")
    config = Config.fromfile(CONFIG)
    changes = overrides(name, tmp_path / "classifier.pth", seed=0)
    config.merge_from_dict({key: str(value) if "checkpoint" in key else value for key, value in changes.items()})
    assert config.param_scheduler[1]["T_max"] == config.param_scheduler[1]["end"] == config.train_cfg.max_epochs
    backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    loaded = torch.equal(backbone.patch_embed.conv.weight, model.patch_embed.conv.weight)
    assert loaded == name.startswith("pretrained")
    found = {key: getattr(backbone.blocks[0].mixer, key) for key in ("rope_scale", "delta_scale")}
    assert found == {key: RULE[key] if key in DETECTORS[name][1] else 1.0 for key in found}
    assert backbone.section == ((10, 10) if "section_size" in DETECTORS[name][1] else None)


def test_the_table():
    scores = {"bbox_mAP": 0.125, "bbox_mAP_50": 0.25}
    table = detectors_table({"scratch": dict(scores=scores), "pretrained-rope": dict(scores=scores)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["start", "section_size", "rope_scale", "delta_scale", "box AP", "box AP50"]
    assert rows[2:] == [
        ["scratch", "–", "–", "–", "12.5", "25.0"],
        ["classifier", "–", "yes", "–", "12.5", "25.0"],
    ]

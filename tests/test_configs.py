"""Every config file here: it builds, has the published shapes, and no key of it is ignored."""

import json
from pathlib import Path

import pytest
import torch

Config = pytest.importorskip("mmengine.config", reason="mmengine is not installed").Config
pytest.importorskip("mmdet", reason="mmdet is not installed")

MMDET_CONFIGS = sorted(Path("mmdet_configs").glob("*/*.py"))


def build(path):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    config = Config.fromfile(path)
    init_default_scope("mmdet")
    with torch.device("meta"):
        return config, MODELS.build(config.model)


@pytest.mark.parametrize("path", MMDET_CONFIGS, ids=lambda p: p.stem)
def test_builds(path):
    config, _ = build(path)
    parts = path.stem.split("_")
    assert config.model.type.lower() in parts[0].split("-")
    if "coco" in path.stem:
        assert config.train_cfg.max_epochs == int(parts[-2].removeprefix("8xb2-").removesuffix("e"))
        assert config.train_dataloader.batch_size == 2 and config.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("size, millions", [("base", 115.36), ("large", 344.17)])
@pytest.mark.parametrize("epochs", [12, 36])
def test_released_detectors_fit_name_by_name(size, epochs, millions):
    _, model = build(f"mmdet_configs/dino/dino-4scale_defocus-mamba-{size}_8xb2-{epochs}e_coco.py")
    with open(f"tests/data/detector_keys_{size}.json") as file:
        released = {name: tuple(shape) for name, shape in json.load(file).items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == released
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_published_recipe():
    config, _ = build("mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-36e_coco.py")
    assert config.optim_wrapper.optimizer == dict(type="AdamW", lr=2e-4, weight_decay=1e-4)
    assert config.optim_wrapper.clip_grad.max_norm == 0.1
    assert config.param_scheduler[0].milestones == [27, 33]
    assert config.model.num_queries == 900
    backbone = config.model.backbone
    assert (backbone.section_size, backbone.rope_scale, backbone.delta_scale) == (224, 20.0, 4.57)
    assert backbone.drop_path_rate == 0.5
    large = Config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-large_8xb2-12e_coco.py").model.backbone
    assert (large.section_size, large.rope_scale, large.delta_scale) == (384, 7.13, 2.67)
    assert Config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py").param_scheduler[
        0
    ].milestones == [11]


def test_learning_rates_and_decay_that_the_optimizer_holds():
    from mmengine.optim import build_optim_wrapper

    config, model = build("mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(g["params"][0])]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert len(found) == len(names)
    for name, (lr, decay) in found.items():
        slow = name.startswith("backbone.") or "sampling_offsets" in name or "reference_points" in name
        assert lr == pytest.approx(2e-5 if slow else 2e-4), name
        constant = name.endswith((".mixer.A_log", ".mixer.D", ".mixer.freq"))
        assert decay == pytest.approx(0.0 if constant else 1e-4), name
    assert sum(name.endswith(".mixer.D") for name in found) == 24


def test_a_key_that_does_nothing_is_an_error():
    from mmdet.registry import MODELS

    config = Config.fromfile(MMDET_CONFIGS[0])
    config.model.backbone.drop_pth_rate = 0.1
    with pytest.raises(TypeError, match="drop_pth_rate"):
        MODELS.build(config.model)

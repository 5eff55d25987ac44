"""Every config file here: it builds, has the published shapes, and no key of it is ignored."""

import json
import re
import sys

import pytest
import torch

Config = pytest.importorskip("mmengine.config", reason="mmengine is not installed").Config
pytest.importorskip("mmdet", reason="mmdet is not installed")

from tests.configs import MMDET_CONFIGS, MMSEG_CONFIGS, build

DINO_BASE = "mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py"


@pytest.mark.parametrize("path", MMDET_CONFIGS, ids=lambda p: p.stem)
def test_builds(path):
    config, _ = build(path)
    parts = path.stem.split("_")
    # As the stock configs are called, without what stands for numbers of scales and for masks beside boxes.
    assert config.model.type.lower() == re.sub(r"-\dscale|-mask|-", "", parts[0])
    # What `--auto-scale-lr` asks for; it sets the first itself.
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=config.auto_scale_lr.base_batch_size)
    if "_coco" in path.stem:
        gpus_and_batch, *_, epochs = parts[-2].split("-")
        if parts[0] == "mask2former":
            # 50 epochs of 118,287 images less the empty ones, counted in iterations as the stock config does.
            assert (epochs, config.train_cfg.max_iters) == ("50e", 368750)
        else:
            assert config.train_cfg.max_epochs == int(epochs.removesuffix("e"))
            assert config.param_scheduler[-1].end == config.train_cfg.max_epochs
        assert gpus_and_batch == "8xb2"
        assert config.train_dataloader.batch_size == 2 and config.auto_scale_lr.base_batch_size == 16


@pytest.mark.parametrize("path", MMSEG_CONFIGS, ids=lambda p: p.stem)
def test_segmentor_builds_as_its_name_says(path):
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    config, model = build(path)
    method, backbone, schedule, data = path.stem.split("_")
    heads = dict(upernet="UPerHead", segformer="SegformerHead", mask2former="Mask2FormerHead")
    assert type(model.decode_head).__name__ == heads[method]
    adapters = dict(tap="TapPyramid", fpn="SimpleFPN", interaction="InteractionAdapter")
    _, family, size, adapter = backbone.split("-")
    assert type(model.backbone.adapter).__name__ == adapters[adapter]
    assert type(model.backbone.net).__name__.lower() == f"defocus{family}"
    assert size == "tiny" or config.model.backbone.net.arch == size
    assert config.train_dataloader.batch_size == int(schedule.split("-")[0].split("b")[1])
    count = schedule.split("-")[1]
    iterations = int(count.removesuffix("it")) if count.endswith("it") else int(count.removesuffix("k")) * 1000
    assert config.train_cfg.max_iters == config.param_scheduler[-1].end == iterations
    if "-" in data:
        # Model, crops and the file's name agree on the size.
        name, crop = data.split("-")
        height, width = map(int, crop.split("x"))
        assert tuple(config.model.data_preprocessor.size) == (height, width)
        (random_crop,) = (t for t in config.train_dataloader.dataset.pipeline if t.type == "RandomCrop")
        assert tuple(random_crop.crop_size) == (height, width)
        assert model.decode_head.num_classes == dict(ade20k=150, cityscapes=19)[name]


def scan_settings(config):
    backbone = config.model.backbone
    return backbone.get("net", backbone)


@pytest.mark.parametrize(
    "path", [p for p in MMSEG_CONFIGS + MMDET_CONFIGS if p.parent.name != "dino"], ids=lambda p: p.stem
)
def test_resolution_settings_follow_from_use_and_pre_training(path):
    from backbones.resolution import resolution_settings

    config, _ = build(path)
    net = scan_settings(config)
    if "shapes" in path.stem:
        # Trained from scratch, at the one size it is used at.
        expected = resolution_settings(160, 160)
    else:
        crop = path.stem.split("-")[-1].split("x")
        use = tuple(map(int, crop)) if len(crop) == 2 else 1024
        expected = resolution_settings(use, 384 if net.arch == "large" else 224)
    assert net.section_size == expected["section_size"]
    assert net.rope_scale == pytest.approx(expected["rope_scale"], rel=5e-3)
    assert net.delta_scale == pytest.approx(expected["delta_scale"], rel=5e-3)


def test_cityscapes_is_tested_by_the_windows_it_was_trained_on():
    slide = Config.fromfile("mmseg_configs/upernet/upernet_defocus-mamba-base-tap_4xb2-80k_cityscapes-512x1024.py")
    assert slide.model.test_cfg.mode == "slide" and slide.model.test_cfg.crop_size == (512, 1024)


@pytest.mark.parametrize("adapter", ["SimpleFPN", "TapPyramid", "InteractionAdapter"])
def test_the_adapter_is_one_argument_of_the_command_line(adapter):
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    config = Config.fromfile("mmseg_configs/upernet/upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py")
    init_default_scope("mmseg")
    config.merge_from_dict({"model.backbone.adapter.type": adapter})
    with torch.device("meta"):
        assert type(MODELS.build(config.model).backbone.adapter).__name__ == adapter


@pytest.mark.parametrize("size, millions", [("base", 115.36), ("large", 344.17)])
@pytest.mark.parametrize("epochs", [12, 36])
def test_released_detectors_fit_name_by_name(size, epochs, millions):
    _, model = build(f"mmdet_configs/dino/dino-4scale_defocus-mamba-{size}_8xb2-{epochs}e_coco.py")
    with open(f"tests/data/detector_keys_{size}.json") as file:
        released = {name: tuple(shape) for name, shape in json.load(file).items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == released
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("path", [p for p in MMDET_CONFIGS if p.parent.name == "dino"], ids=lambda p: p.stem)
def test_dino_is_given_as_many_levels_as_its_name_says(path):
    _, model = build(path)
    levels = int(path.stem.removeprefix("dino-")[0])
    attentions = [layer.self_attn for layer in model.encoder.layers] + [l.cross_attn for l in model.decoder.layers]
    maps = model.neck([torch.empty(1, model.backbone.embed_dims, 16, 16, device="meta")])
    assert len(maps) == len(model.level_embed) == levels
    assert {attention.num_levels for attention in attentions} == {levels}


def test_published_settings():
    config, _ = build(DINO_BASE)
    assert config.model.num_queries == 900
    backbone = config.model.backbone
    assert (backbone.section_size, backbone.rope_scale, backbone.delta_scale) == (224, 20.0, 4.57)
    large = Config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-large_8xb2-12e_coco.py").model.backbone
    assert (large.section_size, large.rope_scale, large.delta_scale) == (384, 7.13, 2.67)


def test_a_key_that_does_nothing_is_an_error():
    from mmdet.registry import MODELS

    config = Config.fromfile(MMDET_CONFIGS[0])
    config.model.backbone.drop_pth_rate = 0.1
    with pytest.raises(TypeError, match="drop_pth_rate"):
        MODELS.build(config.model)


@pytest.mark.parametrize("path", [MMDET_CONFIGS[0], MMSEG_CONFIGS[0]], ids=lambda p: p.parts[0])
def test_another_folder_called_backbones_is_not_taken_for_this_one(path, tmp_path, monkeypatch):
    """Importing the bare name would succeed, and end in 'DefocusMamba is not in the registry'."""
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    # As where the package is installed by copying: what finds one installed in place finds its modules all the same.
    finders = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
    monkeypatch.setattr(sys, "meta_path", finders)
    for name in [name for name in sys.modules if name.partition(".")[0] == "backbones"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as failure:
        Config.fromfile(path)
    causes = [failure.value]
    while causes[-1].__context__ is not None:
        causes.append(causes[-1].__context__)
    assert "No module named 'backbones.integrations'" in str(causes[-1]) and str(tmp_path) in str(failure.value)

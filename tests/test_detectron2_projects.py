"""Every config of Detectron2 and detrex here builds and says what it should; each kind of head trains and infers."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from backbones.defocus import DefocusBackbone
from tests.detectron2_checkouts import detrex_root

CONFIGS = [p for p in sorted(Path("detectron2_projects").glob("*/configs/**/*.py")) if p.parent.name != "common"]
YAML_CONFIGS = sorted(Path("detectron2_projects").glob("*/configs/**/*.yaml"))
BY_NAME = {path.stem: path for path in CONFIGS if path.parent.name != "LVIS"}
TINY = dict(embed_dims=64, inner_dims=128, depth=2, dt_rank=4)


def load(path):
    if "dino" in path.parts:
        detrex_root()
    config = LazyConfig.load(str(path))
    if "data" in config:
        # As if the data set were there: it has 6 classes.
        config.data.num_classes = 6
    return config


def build(config):
    if "device" in config.model:
        config.model.device = "meta"
    with torch.device("meta"):
        return instantiate(config.model)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_config_builds(path, tmp_path):
    config = load(path)
    # Whatever else a file defines would be saved and overridden as if it counted.
    assert set(config) - {"data"} == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    # The trainer keeps it beside the checkpoints.
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    assert not (tmp_path / "config.yaml.pkl").exists(), "the config cannot be saved as YAML"

    model = build(config)
    (net,) = (module for module in model.modules() if isinstance(module, DefocusBackbone))
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}

    blocks = {"tiny": 6, "small": 24, "base": 24, "large": 48}
    size = next(size for size in blocks if f"_{size}" in path.stem)
    assert len(net.blocks) == blocks[size]
    if "tiny" not in path.stem:
        assert config.train.init_checkpoint == f"defocus:defocus_mamba_{size}_cls{'_1k' if size == 'large' else ''}.pth"
    decay = config.optimizer.params.get("lr_factor_func")
    if decay is not None and "dino" not in path.stem:
        assert decay.keywords["num_layers"] == blocks[size]
    assert Path(config.train.output_dir).parts[0] == "work_dirs"
    scheduler = instantiate(config.lr_multiplier)
    assert scheduler(0.5) == 1.0 or "tiny" in path.stem
    assert scheduler(1 - 1e-6) <= 0.1
    for split in ("train", "test"):
        instantiate(config.dataloader[split].mapper)


# Rate, weight decay, factor on the rate from a block to the one below, drop path of the last block.
VITDET = (1e-4, 0.1, 0.8, 0.1)
RECIPES = {"large": (1e-4, 0.1, 0.9, 0.4), "tiny": (1e-3, 0.05, 1.0, 0.0), "LVIS": (2e-4, 0.1, 0.8, 0.1)}


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "dino" not in p.parts], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_rates_and_decay_that_the_optimizer_holds(path):
    lr, decay, rate, drop_path = next((RECIPES[key] for key in RECIPES if key in str(path)), VITDET)
    config = load(path)
    model = build(config)
    config.optimizer.params.model = model
    held = {id(p): group for group in instantiate(config.optimizer).param_groups for p in group["params"]}
    (place,) = (name for name, module in model.named_modules() if isinstance(module, DefocusBackbone))
    net = model.get_submodule(place)
    depth = len(net.blocks)
    assert net.blocks[-1].drop_path.drop_prob == drop_path and net.with_cp == ("tiny" not in path.stem)
    for name, parameter in model.named_parameters():
        group, local = held[id(parameter)], name.removeprefix(f"{place}.")
        above = 0
        if local != name:
            block = re.match(r"blocks\.(\d+)\.", local)
            above = depth - int(block[1]) if block else (0 if local.startswith("norm.") else depth + 1)
            constant = local == "cls_token" or parameter.ndim == 1 or local.endswith((".A_log", ".freq"))
            assert group["weight_decay"] == (0 if constant else decay), name
        elif parameter.ndim > 1:
            assert group["weight_decay"] == decay, name
        assert group["lr"] == pytest.approx(lr * rate**above), name


@pytest.mark.parametrize("stem", [s for s in BY_NAME if "rcnn" in s and "any" not in s])
def test_lvis_and_sizes_say_only_the_difference(stem):
    """What COCO's R-CNN configs share: ViTDet's schedule and batch, images of 1024."""
    if "tiny" in stem:
        pytest.skip("the drawn shapes have their own")
    config = load(BY_NAME[stem])
    assert config.train.max_iter == 184375 and config.dataloader.train.total_batch_size == 64
    assert config.model.backbone.square_pad == 1024
    assert ("cascade" in stem) == ("box_heads" in config.model.roi_heads)


def tiny(config):
    """The same detector in miniature, its heads as they are."""
    config.model.backbone.net.update(arch=TINY, section_size=32, with_cp=True)
    if "square_pad" in config.model.backbone:
        config.model.backbone.square_pad = 0
    heads = config.model.get("roi_heads")
    if heads is not None:
        heads.batch_size_per_image = 16
        config.model.proposal_generator.update(pre_nms_topk=(100, 50), post_nms_topk=(50, 20))
    return config


def sample(classes, stuff):
    """An odd image with two objects, their masks, and a semantic map."""
    height, width = 75, 107
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 60.0], [60.0, 20.0, 100.0, 70.0]]))
    instances.gt_classes = torch.tensor([0, classes - 1])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 10:60, 10:50] = masks[1, 20:70, 60:100] = True
    instances.gt_masks = BitMasks(masks)
    semantic = torch.randint(stuff, (height, width))
    return dict(
        image=torch.randint(256, (3, height, width), dtype=torch.uint8),
        instances=instances,
        sem_seg=semantic,
        height=2 * height,
        width=2 * width,
    )


def trains_and_infers(model, data, expected):
    model.train()
    # Detectron2's mask heads take bit masks at their own size only.
    with EventStorage():
        losses = model([data])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    absent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert absent == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        (result,) = model([{k: data[k] for k in ("image", "height", "width")}])
    assert expected <= set(result)
    if "instances" in expected:
        assert result["instances"].image_size == (150, 214)
    if "sem_seg" in expected:
        assert result["sem_seg"].shape[1:] == (150, 214)
    return losses, result


@pytest.mark.parametrize(
    "stem, losses, outputs",
    [
        ("mask_rcnn_defocus_mamba_base_100ep", {"loss_mask", "loss_cls", "loss_rpn_cls"}, {"instances"}),
        ("cascade_mask_rcnn_defocus_mamba_base_100ep", {"loss_mask", "loss_cls_stage2"}, {"instances"}),
        ("mask_rcnn_defocus_mamba_tiny", {"loss_mask", "loss_cls"}, {"instances"}),
        ("faster_rcnn_defocus_mamba_tiny_any_coco_json", {"loss_cls"}, {"instances"}),
        ("semantic_fpn_defocus_mamba_base_3x", {"loss_sem_seg"}, {"sem_seg"}),
        ("deeplab_v3_plus_defocus_mamba_base_3x", {"loss_sem_seg"}, {"sem_seg"}),
        ("panoptic_fpn_defocus_mamba_base_3x", {"loss_sem_seg", "loss_mask"}, {"sem_seg", "instances", "panoptic_seg"}),
    ],
)
def test_every_kind_of_head_trains_and_infers(stem, losses, outputs):
    config = load(BY_NAME[stem])
    if "tiny" not in stem:
        tiny(config)
    heads = config.model.get("roi_heads")
    model = instantiate(config.model)
    found, _ = trains_and_infers(model, sample(heads.num_classes if heads else 2, 54), outputs)
    assert losses <= set(found)


def test_lvis_samples_absent_classes():
    config = tiny(load(Path("detectron2_projects/rcnn/configs/LVIS/mask_rcnn_defocus_mamba_base_100ep.py")))
    model = instantiate(config.model)
    predictor = model.roi_heads.box_predictor
    assert predictor.use_fed_loss and predictor.fed_loss_cls_weights.numel() == model.roi_heads.num_classes == 1203
    trains_and_infers(model, sample(1203, 54), {"instances"})


@pytest.mark.parametrize("path", YAML_CONFIGS, ids=lambda p: p.stem)
def test_yaml_config_trains_and_infers(path):
    from detectron2.modeling import build_model

    import backbones.integrations.detectron2  # noqa: F401  gives the configuration its node

    config = get_cfg()
    config.merge_from_file(str(path))
    config.MODEL.DEVICE = "cpu"
    model = build_model(config)
    trains_and_infers(model, sample(config.MODEL.ROI_HEADS.NUM_CLASSES, 2), {"instances"})


# ---- DINO on detrex


@pytest.fixture
def detrex():
    return detrex_root()


def test_dino_has_the_published_recipe(detrex):
    """Every parameter's learning rate and decay are those that mmdet gives it under the published recipe."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    from backbones.checkpoints import to_mmdet

    theirs = Config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-36e_coco.py")
    init_default_scope("mmdet")
    with torch.device("meta"):
        truth = MODELS.build(theirs.model)
    optimizer = build_optim_wrapper(truth, theirs.optim_wrapper).optimizer
    names = {id(p): name for name, p in truth.named_parameters()}
    expected = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}

    config = load(BY_NAME["dino_defocus_mamba_base_4scale_36ep"])
    model = build(config)
    config.optimizer.params.model = model
    settings = {id(p): g for g in instantiate(config.optimizer).param_groups for p in g["params"]}
    renamed, left = to_mmdet(dict(model.named_parameters(remove_duplicate=False)))
    assert left == [] and set(renamed) == set(expected)
    for name, parameter in renamed.items():
        group = settings[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == pytest.approx(expected[name]), name

    assert dict(config.train.clip_grad.params) == dict(max_norm=0.1, norm_type=2) and config.train.clip_grad.enabled
    assert config.dataloader.train.total_batch_size == theirs.auto_scale_lr.base_batch_size == 16
    milestones = [m / 7500 for m in config.lr_multiplier.scheduler.milestones]
    assert milestones == [*theirs.param_scheduler[0].milestones, 36]
    (net,) = (m for m in model.modules() if isinstance(m, DefocusBackbone))
    (same,) = (m for m in truth.modules() if isinstance(m, DefocusBackbone))
    for attribute in ("section", "patch_size", "with_cp"):
        assert getattr(net, attribute) == getattr(same, attribute)
    assert net.blocks[-1].drop_path.drop_prob == same.blocks[-1].drop_path.drop_prob == 0.5


@pytest.mark.parametrize("size", ["base", "large"])
def test_released_detectors_convert_and_load(size, detrex):
    """Random weights in the published names: nothing is missing, nothing is left, and back they are the same."""
    from backbones.checkpoints import to_detectron2, to_mmdet

    with open(f"tests/data/detector_keys_{size}.json") as file:
        released = {name: torch.rand(1).expand(shape) for name, shape in json.load(file).items()}
    converted, left = to_detectron2(released)
    model = build(load(BY_NAME[f"dino_defocus_mamba_{size}_4scale_12ep"]))
    model.load_state_dict(converted, assign=True)
    assert left == []
    back, left = to_mmdet(converted)
    assert left == [] and set(back) == set(released)
    assert all(back[name] is released[name] for name in back)


def small_dino(config):
    config.model.backbone.net.update(arch=TINY, section_size=None, drop_path_rate=0.0, with_cp=False)
    # 256 channels throughout: detrex' queries are encoded for no other width.
    config.model.update(num_queries=20, num_classes=5, dn_number=10, select_box_nums_for_evaluation=10)
    for part in (config.model.transformer.encoder, config.model.transformer.decoder.decoder):
        part.update(feedforward_dim=128, num_layers=2)
    config.model.device = "cpu"
    return config


def test_converted_dino_finds_the_same_boxes(detrex):
    """mmdet's DINO and detrex', with the same weights, on the same image."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from backbones.checkpoints import to_detectron2
    from tests.testing import assert_close

    init_default_scope("mmdet")
    theirs = Config.fromfile("mmdet_configs/dino/dino-4scale_defocus-mamba-base_8xb2-12e_coco.py").model
    theirs.backbone.update(section_size=None, drop_path_rate=0.0, arch=None)
    theirs.backbone.arch = TINY
    theirs.neck.in_channels = 64
    for part in (theirs.encoder, theirs.decoder):
        part.num_layers = 2
        part.layer_cfg.ffn_cfg.feedforward_channels = 128
    theirs.bbox_head.num_classes = 5
    theirs.update(num_queries=20, test_cfg=dict(max_per_img=10))
    truth = MODELS.build(theirs).eval()
    truth.init_weights()
    for parameter in truth.parameters():
        # What starts at zero would hide a difference.
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn_like(parameter))

    config = small_dino(load(BY_NAME["dino_defocus_mamba_base_4scale_12ep"]))
    model = instantiate(config.model).eval()
    converted, left = to_detectron2(truth.state_dict())
    model.load_state_dict(converted)
    assert left == []

    image = torch.randint(256, (3, 96, 128)).float()
    normalised = model.normalizer(image)[None]
    sample = DetDataSample(metainfo=dict(img_shape=(96, 128), batch_input_shape=(96, 128), scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        expected = truth.predict(normalised, [sample], rescale=False)[0].pred_instances
        found = model([dict(image=image, height=96, width=128)])[0]["instances"]
    assert_close(found.scores, expected.scores, "scores", 1e-4)
    assert torch.equal(found.pred_classes, expected.labels)
    assert_close(found.pred_boxes.tensor, expected.bboxes, "boxes", 1e-4)


def test_dino_trains_and_infers(detrex, monkeypatch):
    # detrex names CUDA in the middle of its denoising, whatever the device.
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: self if a == ("cuda",) else to(self, *a, **k))
    model = instantiate(small_dino(load(BY_NAME["dino_defocus_mamba_base_4scale_12ep"])).model)
    _, result = trains_and_infers(model, sample(5, 2), {"instances"})
    assert len(result["instances"]) == 10

"""Tiny models, trained for two steps by each framework's own tools, and what their backbones then see.

The file that a tool leaves is what the tests are given; the maps come from the module in the trainer's memory where
that can be had, else from the file as the framework itself reads it.
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.checkpoints import backbone_from_checkpoint
from backbones.defocus import DefocusBackbone
from tests.detectron2_checkouts import detectron2_root, detrex_root

NET = dict(
    arch=dict(embed_dims=64, inner_dims=128, depth=4, dt_rank=4), section_size=32, rope_scale=3.0, delta_scale=2.0
)
EVERY_BLOCK = (0, 1, 2, 3)
CLASSES = 6
IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """A checkpoint and what is true of it.

    Attributes:
        file: What the tool wrote.
        settings: Arguments of the backbone.
        norm_eps: Epsilon of its final norm.
        maps: Of `IMAGE`, after each block, by the weights that are to be loaded.
        weights: These weights, as the trainer has them.
        average: The moving average of them by hand, empty without one.
        last: Weights of the last step and their key in the file, for one with an average.
        classes: Of a classifier's heads.
    """

    file: Path
    settings: dict
    norm_eps: float
    maps: tuple[Tensor, ...]
    weights: Weights
    average: Weights
    last: tuple[Weights, str] | None = None
    classes: int = 0


def the_backbone(model: nn.Module) -> DefocusBackbone:
    """The one De-focus backbone in a model."""
    (net,) = (module for module in model.modules() if isinstance(module, DefocusBackbone))
    return net


def copy_weights(model: nn.Module) -> Weights:
    """A copy of the backbone's weights, in a backbone's names."""
    weights, _ = backbone_from_checkpoint(the_backbone(model).state_dict())
    return {name: value.clone() for name, value in weights.items()}


def describe(
    file: Path, model: nn.Module, average: Weights | None = None, last: tuple[Weights, str] | None = None
) -> Trained:
    """What is true of a file that holds the weights of a trained model."""
    net = the_backbone(model).eval()
    with torch.no_grad():
        maps = net.forward_maps(IMAGE, EVERY_BLOCK)
    settings = NET | dict(patch_size=net.patch_size)
    classes = getattr(net, "num_classes", 0)
    return Trained(file, settings, net.norm.eps, maps, copy_weights(model), average or {}, last, classes)


def moving_average(steps: list[Weights], keep: float) -> Weights:
    """The exponential average, in float64, that begins with the first of ``steps``."""
    average = {name: value.double() for name, value in steps[0].items()}
    for weights in steps[1:]:
        average = {name: keep * value + (1 - keep) * weights[name].double() for name, value in average.items()}
    return average


# ---- mmdet, mmseg

_DINO = "mmdet_configs/dino/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py"
_MASK_RCNN = "mmdet_configs/mask_rcnn/mask-rcnn_defocus-mamba-tiny_1xb4-3e_shapes.py"
_MASK2FORMER = "mmdet_configs/mask2former/mask2former_defocus-mamba-base_8xb2-lsj-50e_coco.py"
_UPERNET = "mmseg_configs/upernet/upernet_defocus-mamba-tiny-fpn_1xb4-3600it_shapes.py"
_MASK2FORMER_OF_MMSEG = "mmseg_configs/mask2former/mask2former_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py"
# The config, and the adapter that takes the place of its own.
_OPENMMLAB = {
    "mmdet DINO": (_DINO, None),
    "mmdet Mask R-CNN": (_MASK_RCNN, None),
    "mmdet Mask R-CNN, average": (_MASK_RCNN, None),
    "mmdet Mask2Former": (_MASK2FORMER, None),
    "mmseg UPerNet on SimpleFPN": (_UPERNET, None),
    "mmseg UPerNet on TapPyramid": (_UPERNET, dict(type="TapPyramid", out_channels=64)),
    "mmseg UPerNet on InteractionAdapter": (
        _UPERNET,
        dict(type="InteractionAdapter", out_channels=64, num_heads=4),
    ),
    "mmseg Mask2Former": (_MASK2FORMER_OF_MMSEG, None),
}


def _train_with_mmengine(name: str, shapes: Path, folder: Path) -> Trained:
    """As `tools/train.py` of mmdet and mmseg does: the runner of a config, of which sizes and data are changed."""
    pytest.importorskip(name.split()[0], reason=f"{name.split()[0]} is not installed")
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmengine.config import Config
    from mmengine.runner import Runner

    path, adapter = _OPENMMLAB[name]
    # Formatted by yapf, the configs that a run leaves take longer than its training.
    config = Config(Config.fromfile(path).to_dict(), format_python_code=False)
    net = config.model.backbone.get("net", config.model.backbone)
    net.update(NET, patch_size=8, out_indices=EVERY_BLOCK, drop_path_rate=0.0)
    if adapter is not None:
        config.model.backbone.adapter = adapter
    if config.model.get("neck"):
        config.model.neck.in_channels = 64
    if path in (_MASK2FORMER, _MASK2FORMER_OF_MMSEG):
        _shrink_mask2former(config.model)
    if path == _UPERNET:
        config.model.decode_head.channels = 32
    # Pictures with boxes and masks, or with label maps.
    config.train_dataloader = Config.fromfile(_MASK_RCNN if path.startswith("mmdet") else _UPERNET).train_dataloader
    config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.train_dataloader.dataset.data_root = f"{shapes}/"
    for key in [key for key in config if key.startswith(("val_", "test_"))]:
        config[key] = None
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)
    config.param_scheduler = []
    config.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=2)
    config.update(work_dir=str(folder), log_level="ERROR", experiment_name=name.replace(" ", "_"))
    if name.endswith("average"):
        config.custom_hooks.append(dict(type="EMAHook", momentum=0.3))

    runner = Runner.from_cfg(config)
    steps: list[Weights] = []
    the_backbone(runner.model).register_forward_pre_hook(lambda *_: steps.append(copy_weights(runner.model)))
    runner.train()
    file = folder / "iter_2.pth"
    if not name.endswith("average"):
        return describe(file, runner.model)
    last = copy_weights(runner.model)
    (model,) = (hook.ema_model.module for hook in runner.hooks if hasattr(hook, "ema_model"))
    # The hook's average begins with the weights after the first step.
    average = moving_average([steps[1], last], keep=0.7)
    return describe(file, model, average, (last, "ema_state_dict"))


def _shrink_mask2former(model) -> None:
    head = model.get("panoptic_head") or model.decode_head
    head.num_queries = 10
    head.transformer_decoder.num_layers = 2
    head.pixel_decoder.encoder.num_layers = 1
    if "panoptic_head" in model:
        model.data_preprocessor.batch_augments = None
        things = dict(num_things_classes=CLASSES, num_stuff_classes=0)
        head.update(things)
        model.panoptic_fusion_head.update(things)
        head.loss_cls.class_weight = [1.0] * CLASSES + [0.1]
        model.train_cfg.num_points = 256
    else:
        model.data_preprocessor.size = (96, 96)
        head.num_classes = CLASSES + 1
        head.loss_cls.class_weight = [1.0] * (CLASSES + 1) + [0.1]
        head.train_cfg.num_points = 256


# ---- Detectron2, detrex


def _train_with_detectron2(name: str, shapes: Path, folder: Path) -> Trained:
    """By Detectron2's `tools/lazyconfig_train_net.py`."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed (build it from its source)")
    script = _load_script(detectron2_root() / "tools/lazyconfig_train_net.py")
    from detectron2.config import LazyCall as L
    from detectron2.config import LazyConfig, instantiate

    from backbones.adapters import SimpleFPN
    from backbones.integrations.detectron2 import AdaptedBackbone

    config = LazyConfig.load("detectron2_projects/rcnn/configs/shapes/mask_rcnn_defocus_mamba_tiny.py")
    config.data.root = str(shapes)
    if name.endswith("AdaptedBackbone"):
        settings = dict(out_channels=96, num_outs=3, start_level=1)
        config.model.backbone = L(AdaptedBackbone)(net=config.model.backbone.net, adapter=SimpleFPN, **settings)
    config.model.backbone.net.update(NET)
    _shorten(config, folder)
    script.do_train(Namespace(resume=False), config)
    model = instantiate(config.model)
    model.load_state_dict(torch.load(folder / "model_final.pth")["model"])
    return describe(folder / "model_final.pth", model)


def _train_with_detrex(name: str, shapes: Path, folder: Path) -> Trained:
    """DINO by detrex' `tools/train_net.py`, which keeps an average."""
    root = detrex_root()
    script = _load_script(root / "tools/train_net.py")
    from detectron2.config import LazyCall as L
    from detectron2.config import LazyConfig, instantiate

    from backbones.integrations.detectron2 import register_coco_json

    config = LazyConfig.load("detectron2_projects/dino/configs/dino_defocus_mamba_base_4scale_12ep.py")
    config.dataloader.train.dataset.names = L(register_coco_json)(
        json_file=f"{shapes}/annotations/instances_train.json", image_root=f"{shapes}/train"
    )
    config.dataloader.train.mapper.update(augmentation=[], augmentation_with_crop=None)
    config.model.backbone.net.update(NET, drop_path_rate=0.0, with_cp=False)
    config.model.update(num_queries=20, num_classes=CLASSES, dn_number=10, select_box_nums_for_evaluation=10)
    for part in (config.model.transformer.encoder, config.model.transformer.decoder.decoder):
        part.update(feedforward_dim=128, num_layers=2)
    _shorten(config, folder)
    config.train.model_ema.update(enabled=True, decay=0.6)
    model = instantiate(config.model)
    steps = [copy_weights(model)]
    torch.save({"model": model.state_dict()}, folder / "start.pth")
    config.train.init_checkpoint = str(folder / "start.pth")
    with pytest.MonkeyPatch.context() as patch:
        # detrex' trainer and denoising want CUDA; this lets them have the CPU for it.
        to = Tensor.to
        patch.setattr(Tensor, "cuda", lambda self: self)
        patch.setattr(Tensor, "to", lambda self, *a, **k: self if a == ("cuda",) else to(self, *a, **k))
        patch.setattr(script.torch.cuda, "is_available", lambda: sys._getframe(1).f_code.co_name == "run_step")
        script.do_train(Namespace(resume=False), config)
    for file in ("model_0000000.pth", "model_final.pth"):
        model.load_state_dict(torch.load(folder / file)["model"])
        steps.append(copy_weights(model))
    model.load_state_dict(torch.load(folder / "model_final.pth")["ema_state"], strict=False)
    return describe(folder / "model_final.pth", model, moving_average(steps, keep=0.6), (steps[-1], "model"))


def _load_script(path: Path):
    spec = importlib.util.spec_from_file_location(f"stock_{path.parent.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shorten(config, folder: Path) -> None:
    """Two steps on a CPU, a checkpoint after each, no evaluation."""
    config.train.update(output_dir=str(folder), max_iter=2, log_period=1, device="cpu")
    config.train.checkpointer.period = 1
    config.train.ddp.device_ids = None
    config.dataloader.train.update(total_batch_size=2, num_workers=0)
    config.dataloader.pop("evaluator")


# ---- timm


def _train_with_timm(name: str, shapes: Path, folder: Path) -> Trained:
    """As timm's train.py, which is not in its package, and with what that saves by."""
    timm = pytest.importorskip("timm", minversion="1.0.3", reason="timm 1.0.3 or newer is not installed")
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    arguments = Namespace(model="defocus_mamba_small", opt="adamw", lr=1e-2)
    model = timm.create_model(arguments.model, num_classes=CLASSES, **NET)
    optimizer = create_optimizer_v2(model, arguments.opt, arguments.lr)
    average = ModelEmaV3(model, decay=0.6) if name.endswith("average") else None
    steps = [copy_weights(model)]
    for seed in range(2):
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
        steps.append(copy_weights(model))
        if average is not None:
            average.update(model)
    saver = CheckpointSaver(model, optimizer, arguments, average, checkpoint_dir=str(folder))
    saver.save_checkpoint(epoch=0)
    file = folder / "last.pth.tar"
    if average is None:
        return describe(file, model)
    return describe(file, average.module, moving_average(steps, keep=0.6), (steps[-1], "state_dict"))


SOURCES: dict[str, Callable[[str, Path, Path], Trained]] = {
    **dict.fromkeys(_OPENMMLAB, _train_with_mmengine),
    "Detectron2 Mask R-CNN on SimpleFeaturePyramid": _train_with_detectron2,
    "Detectron2 Mask R-CNN on AdaptedBackbone": _train_with_detectron2,
    "detrex DINO, average": _train_with_detrex,
    "timm": _train_with_timm,
    "timm, average": _train_with_timm,
}

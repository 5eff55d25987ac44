"""What `defocus flops` measures: a model of timm, or of a config of mmdet, mmseg or Detectron2, and an image.

Each framework's compiled functions run on shapes here: deformable attention as our own operation, boxes' suppression
and pooling as what they give at most. They are listed by name, for no dispatcher shows them.
"""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor, nn

from backbones.flops import FlopCounter, Subject
from backbones.integrations.deformable import standing_in
from backbones.integrations.frameworks import needed
from backbones.integrations.networks import is_lazy, read_settings


def find_subject(name: str, size: tuple[int, int], options: Sequence[str] = ()) -> Callable[[], Subject]:
    """What builds the model called ``name`` and an image for it, to be called where tensors are fake.

    Args:
        name: A config file (mmengine's, a lazy one or a YAML of Detectron2), a stock config such as
            `mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py`, or a name of timm.
        size: Height and width of the image, before the model's own padding.
        options: Settings that differ, as `model.backbone.arch=small`.

    Raises:
        ValueError: ``name`` is none of these, or an option has no value.
        FrameworkError: Its framework is absent, too old or broken.
    """
    kind = kind_of(name)
    for option in options:
        if "=" not in option:
            raise ValueError(f"an option is KEY=VALUE, as model.backbone.arch=small, got {option!r}")
    return lambda: _BUILDERS[kind](name, size, options)


def kind_of(name: str) -> str:
    """Which framework reads ``name``: "openmmlab", "detectron2" or "timm".

    Raises:
        ValueError: A file that is absent, or no config.
    """
    if "::" in name:
        return "openmmlab"
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        kind = "detectron2"
    elif path.suffix == ".py":
        kind = None
    else:
        return "timm"
    if not path.is_file():
        raise ValueError(f"there is no file {name}: give a config, or a name of timm")
    return kind or ("detectron2" if is_lazy(path) else "openmmlab")


def _timm(name: str, size: tuple[int, int], options: Sequence[str]) -> Subject:
    with needed("timm"):
        import timm
        from timm.models import is_model

        from backbones.integrations.timm import size_settings

    if not is_model(name):
        raise ValueError(f"timm has no model {name!r}, nor is it a config file: see timm.list_models()")
    model = timm.create_model(name, **(read_settings(options) | size_settings(name, size))).eval()
    image = torch.empty(1, model.pretrained_cfg["input_size"][0], *size)
    return Subject(model, lambda: model(image), [model])


def _openmmlab(name: str, size: tuple[int, int], options: Sequence[str]) -> Subject:
    with needed("mmengine"):
        from mmengine.config import Config
        from mmengine.hub import get_config
        from mmengine.registry import init_default_scope

    config = get_config(name) if "::" in name else Config.fromfile(name)
    config.merge_from_dict(read_settings(options))
    scope = config.get("default_scope")
    if scope not in ("mmdet", "mmseg"):
        raise ValueError(f"{name}: default_scope is {scope!r}; only configs of mmdet and mmseg can be measured")
    init_default_scope(scope)
    registry = importlib.import_module(f"{scope}.registry")
    model = registry.MODELS.build(config.model).eval()
    run = _segment if scope == "mmseg" else _detect
    image = torch.empty(3, *size, dtype=torch.uint8)
    trained = [part for part in (model.backbone, getattr(model, "neck", None)) if part is not None]
    return Subject(model, lambda: run(model, image), trained, _functions_of_mmcv)


def _detect(model: nn.Module, image: Tensor) -> object:
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[1:])
    sample = DetDataSample(metainfo=dict(img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    if type(getattr(model, "roi_head", None)).__name__ == "CascadeRoIHead":
        return _cascade(model, data["inputs"], data["data_samples"])
    return model(data["inputs"], data["data_samples"], mode="tensor")


def _cascade(model: nn.Module, inputs: Tensor, samples: list) -> object:
    """As the `tensor` mode, whose mask heads would run on all proposals: on as many boxes as are kept."""
    from mmdet.structures.bbox import bbox2roi

    head, maps = model.roi_head, model.extract_feat(inputs)
    proposals = [found.bboxes for found in model.rpn_head.predict(maps, samples, rescale=False)]
    metas, lengths = [sample.metainfo for sample in samples], tuple(map(len, proposals))
    rois, *outs = head._refine_roi(maps, bbox2roi(proposals), metas, lengths)
    if head.with_mask:
        kept = torch.cat(rois)[: head.test_cfg.max_per_img]
        outs += [head._mask_forward(stage, maps, kept) for stage in range(head.num_stages)]
    return outs


def _segment(model: nn.Module, image: Tensor) -> object:
    """The whole image at once, as no sliding window would."""
    from mmseg.structures import SegDataSample

    size = tuple(image.shape[1:])
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    return model.encode_decode(data["inputs"], [sample.metainfo for sample in data["data_samples"]])


def _detectron2(name: str, size: tuple[int, int], options: Sequence[str]) -> Subject:
    with needed("detectron2"):
        from detectron2.config import LazyConfig, get_cfg, instantiate
        from detectron2.modeling import META_ARCH_REGISTRY

        import backbones.integrations.detectron2  # noqa: F401  gives the configuration its node

    if Path(name).suffix == ".py":
        # detrex keeps its models in a folder of its checkout.
        if "DETREX_ROOT" in os.environ and os.environ["DETREX_ROOT"] not in sys.path:
            sys.path.append(os.environ["DETREX_ROOT"])
        try:
            config = LazyConfig.apply_overrides(LazyConfig.load(name), list(options))
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] != "projects":
                raise
            raise ImportError(f"{name} needs the checkout of detrex: set DETREX_ROOT to its folder") from error
        if "device" in config.model:
            config.model.device = "cpu"
        model = instantiate(config.model).eval()
    else:
        config = get_cfg()
        config.merge_from_file(name)
        config.merge_from_list([part for option in options for part in option.split("=", 1)])
        config.MODEL.DEVICE = "cpu"
        # Detectron2's `build_model` would move what is there already.
        model = META_ARCH_REGISTRY.get(config.MODEL.META_ARCHITECTURE)(config).eval()
    sample = dict(image=torch.empty(3, *size, dtype=torch.uint8), height=size[0], width=size[1])
    arguments = {}
    if "do_postprocess" in inspect.signature(getattr(model, "inference", model.forward)).parameters:
        # Pasting masks into the image is no part of the network.
        arguments["do_postprocess"] = False
    run = model.inference if arguments else model
    trained = [part for part in (model.backbone, getattr(model, "neck", None)) if part is not None]
    return Subject(model, lambda: run([sample], **arguments), trained, _functions_of_detectron2)


_BUILDERS = {"timm": _timm, "openmmlab": _openmmlab, "detectron2": _detectron2}


# ---- Compiled functions


class _Listed:
    """mmcv's compiled module, on shapes: what it would write is left as it is, each call is listed.

    Args:
        module: The module.
        counter: Where calls are listed.
    """

    # Functions that give something back; all others write into what they are given.
    _GIVES = ("nms", "nms_rotated", "nms_quadri", "softnms")

    def __init__(self, module: ModuleType, counter: FlopCounter):
        self._module = module
        self._counter = counter

    def __getattr__(self, name: str):
        function = getattr(self._module, name)
        if not callable(function):
            return function

        def call(*args, **kwargs):
            out = None
            if name in self._GIVES:
                out = args[0].new_empty(len(args[0]), dtype=torch.long)
            given = out if out is not None else kwargs.get("output", next((x for x in args[2:3]), None))
            self._counter.list_uncounted(f"mmcv.{name}", given)
            return out

        return call


@contextlib.contextmanager
def _functions_of_mmcv(counter: FlopCounter) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("mmcv.ops.") and hasattr(module, "ext_module"):
                stack.enter_context(patch.object(module, "ext_module", _Listed(module.ext_module, counter)))
        if "mmcv.ops.multi_scale_deform_attn" in sys.modules:
            stack.enter_context(standing_in(sys.modules["mmcv.ops.multi_scale_deform_attn"]))
        yield


@contextlib.contextmanager
def _functions_of_detectron2(counter: FlopCounter) -> Iterator[None]:
    import torchvision.ops.boxes

    def batched_nms(boxes, scores, idxs, iou_threshold):
        keep = boxes.new_empty(len(boxes), dtype=torch.long)
        counter.list_uncounted("torchvision.batched_nms", keep)
        return keep

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(torchvision.ops.boxes, "batched_nms", batched_nms))
        if "detrex.layers.multi_scale_deform_attn" in sys.modules:
            stack.enter_context(standing_in(sys.modules["detrex.layers.multi_scale_deform_attn"]))
        yield

"""The backbones as Detectron2's own: for lazy configs, and by name for YAML configs.

    from backbones.integrations.detectron2 import DefocusMamba

    model.backbone = L(SimpleFeaturePyramid)(net=L(DefocusMamba)(arch="base"), in_feature="last_feat", ...)

Every family of `backbones.defocus` stands here under its name, as a `detectron2.modeling.Backbone`. Importing this
module registers the builders for YAML, gives Detectron2's default configuration the node ``MODEL.DEFOCUS``, and lets
checkpoints be named as ``defocus:FILE``. ``import backbones`` alone does not import it: configs name what they use.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import adapters, defocus
from backbones.checkpoints import (
    CheckpointError,
    check_finite,
    check_shapes,
    find_average,
    read_checkpoint,
    to_detectron2,
    weights_of,
)
from backbones.integrations.frameworks import needed
from backbones.layers.norms import LayerNorm2d
from backbones.thread_count import ThreadCount

with needed("detectron2", oldest="0.6"):
    from detectron2.config import CfgNode
    from detectron2.config.defaults import _C as default_config
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import HookBase
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone, SimpleFeaturePyramid
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
    from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
    from detectron2.utils.file_io import PathHandler, PathManager
    from omegaconf import OmegaConf

# Below Detectron2's own, whose handlers print it.
logger = logging.getLogger("detectron2.defocus")


class NamedMaps(Backbone):
    """Detectron2's contract for a module that returns a tuple of maps and knows their channels and strides.

    Images whose sides are no multiples of ``size_divisibility`` are padded with zeros at the right and the bottom, as
    Detectron2 does where it asks; it does not ask a backbone below its own `SimpleFeaturePyramid`.
    """

    def _describe(self, net, out_features, size_divisibility: int, square_pad: int) -> None:
        """Fills the contract from the ``out_channels`` and ``out_strides`` of ``net``."""
        channels, strides = tuple(net.out_channels), tuple(net.out_strides)
        names = _default_names(strides) if out_features is None else tuple(out_features)
        if len(names) != len(channels) or len(set(names)) != len(names):
            raise ValueError(
                f"out_features must name {len(channels)} maps, of strides {strides}, each differently, got {names}"
            )
        for name, value in (("size_divisibility", size_divisibility), ("square_pad", square_pad)):
            if value < 0:
                raise ValueError(f"{name} must be 0 (no padding) or more, got {value}")
        self._out_features = list(names)
        self._out_feature_channels = dict(zip(names, channels))
        self._out_feature_strides = dict(zip(names, strides))
        self._size_divisibility = size_divisibility
        self._square_pad = square_pad

    @property
    def size_divisibility(self) -> int:
        """What the sides of images are padded to a multiple of; 0 for no padding."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same in the words of `ImageList.from_tensors`, with the side of a square to pad to, 0 for none."""
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}

    def _name_maps(self, forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> dict[str, Tensor]:
        if self._size_divisibility > 1:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % self._size_divisibility, 0, -height % self._size_divisibility))
        return dict(zip(self._out_features, forward(x), strict=True))


class AdaptedBackbone(NamedMaps):
    """A backbone of this module with one of our adapters: images to a pyramid.

        L(AdaptedBackbone)(net=L(DefocusMamba)(arch="base"), adapter=SimpleFPN, out_channels=256)

    Args:
        net: The backbone.
        adapter: A class of `backbones.adapters`.
        out_features: A name for each map. None names maps of strides 4, 8, … "p2", "p3", ….
        size_divisibility: Images are padded to multiples of it; None takes the coarsest stride.
        square_pad: Images are padded to squares of this side before that; 0 for no squares.
        **settings: Arguments of the adapter, which rejects others; what follows from ``net`` need not be said.

    Raises:
        ValueError: Another number of names than maps, or ``net`` does not give what the adapter takes.
    """

    def __init__(
        self,
        net: NamedMaps,
        adapter: type[adapters.Adapter],
        out_features: Sequence[str] | None = None,
        size_divisibility: int | None = None,
        square_pad: int = 0,
        **settings,
    ):
        super().__init__()
        self.net = net
        self.adapter = adapter.fit(net, **_plain(settings))
        shapes = adapters.AdaptedBackbone(net, self.adapter)
        if size_divisibility is None:
            size_divisibility = max(shapes.out_strides)
        self._describe(shapes, out_features, size_divisibility, square_pad)
        net.gives_names = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by name, of images `(b, c, H, W)`."""
        return self._name_maps(partial(self.adapter.adapt, self.net), x)


def _named(family: type[defocus.DefocusBackbone]) -> type[NamedMaps]:
    """A family as a Detectron2 backbone; its parameters keep their names."""

    class Named(NamedMaps, family):
        # An adapter reads the family's own tuple.
        gives_names = True

        def __init__(self, *args, out_features=None, size_divisibility=None, square_pad=0, **kwargs):
            # Lazy configs hand over omegaconf's containers.
            args, kwargs = _plain(list(args)), _plain(kwargs)
            family.__init__(self, *args, **kwargs)
            if out_features is None and len(self.out_indices) > 1:
                out_features = [f"block{i}" for i in self.out_indices]
            self.register_load_state_dict_pre_hook(_refuse_other_sizes)
            if size_divisibility is None:
                size_divisibility = 2 * self.patch_size
            self._describe(self, out_features, size_divisibility, square_pad)

        def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
            forward = partial(family.forward, self)
            return self._name_maps(forward, x) if self.gives_names else forward(x)

    Named.__name__ = Named.__qualname__ = family.__name__
    Named.__module__ = __name__
    Named.__doc__ = f"""{family.__doc__.rstrip()}

    As a Detectron2 backbone: `forward` gives a dict of maps. All arguments of the family, and

    Args:
        out_features: A name for each map. None names a single map "last_feat", several "block3", … by their block.
        size_divisibility: Images are padded to multiples of it. None takes twice the patch, which a pyramid down to
            half the map's resolution needs; 0 pads to whole patches only, as under mmdet.
        square_pad: Images are padded to squares of this side before that; 0 for no squares.
    """
    return Named


for _name, _family in defocus.FAMILIES.items():
    globals()[_name] = _named(_family)


# ---- Optimisation


def get_optimizer_params(model: nn.Module, **settings) -> list[dict]:
    """Detectron2's `get_default_optimizer_params` that knows what of our backbones should not decay.

    Detectron2's own leaves `weight_decay_norm` to torch's norms and knows neither RMSNorm nor the scan's constants.

    Args:
        model: The detector.
        **settings: As of `get_default_optimizer_params`, which rejects others.

    Returns:
        Parameter groups; those of `no_weight_decay` of each De-focus backbone in ``model`` have no weight decay.
    """
    undecayed = set()
    for module in model.modules():
        if isinstance(module, defocus.DefocusBackbone):
            undecayed |= {id(module.get_parameter(name)) for name in module.no_weight_decay()}
    groups = []
    for group in get_default_optimizer_params(model, **settings):
        free = [p for p in group["params"] if id(p) in undecayed]
        rest = [p for p in group["params"] if id(p) not in undecayed]
        groups.append({**group, "params": rest})
        groups.append({**group, "params": free, "weight_decay": 0.0})
    return reduce_param_groups(groups)


def get_lr_decay_rate(name: str, lr_decay_rate: float, num_layers: int) -> float:
    """Layer-wise decay of the learning rate: Detectron2's `get_vit_lr_decay_rate` that knows the class token.

    Args:
        name: A parameter's name in the detector.
        lr_decay_rate: The factor from a block to the one below.
        num_layers: Blocks of the backbone.

    Returns:
        ``lr_decay_rate ** (num_layers + 1)`` for patch embedding and class token, ``lr_decay_rate`` for the last
        block, 1 for all that follows.
    """
    if name.startswith("backbone") and name.endswith(".cls_token"):
        name = name.replace(".cls_token", ".patch_embed")
    return get_vit_lr_decay_rate(name, lr_decay_rate, num_layers)


# ---- Data sets


class ThreadCountHook(HookBase):
    """Finds the number of threads with which a training on a CPU is fastest, and follows it: `ThreadCount`."""

    def __init__(self):
        self.thread_count = ThreadCount()

    def before_step(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        said = self.thread_count.step(time.perf_counter() - self.start)
        if said:
            logger.info(said)


def register_coco_json(json_file: str | os.PathLike, image_root: str | os.PathLike, name: str | None = None) -> str:
    """Makes a COCO instances file known to Detectron2; in lazy configs it stands where a data set's name does.

        dataloader.train.dataset.names = L(register_coco_json)(json_file=..., image_root=...)

    Args:
        json_file: Annotations in COCO's format.
        image_root: Folder that the images' ``file_name`` starts from.
        name: What to call the data set; None calls it by its file.

    Returns:
        The name.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: ``name`` is that of another data set.
    """
    for path, kind in ((json_file, "annotations"), (image_root, "images")):
        if not PathManager.exists(str(path)):
            raise FileNotFoundError(f"{kind} {path} do not exist (looked from {Path.cwd()})")
    name = str(json_file) if name is None else name
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) != (str(json_file), str(image_root)):
            raise ValueError(f"{name!r} is the name of another data set, {known.get('json_file')}: choose another name")
        return name
    register_coco_instances(name, {}, str(json_file), str(image_root))
    return name


def count_categories(json_file: str | os.PathLike) -> int:
    """The number of classes in a COCO file, for ``num_classes`` of heads in lazy configs."""
    with PathManager.open(str(json_file)) as file:
        return len(json.load(file)["categories"])


# ---- YAML configs


def add_defocus_config(config: CfgNode) -> None:
    """Adds ``MODEL.DEFOCUS`` to a configuration; one made by `get_cfg` after importing this module has it.

    ``FAMILY`` is a name here, ``OPTIONS`` holds its arguments as Python has them (`arch`, `section_size`, …), and
    ``PYRAMID`` is for `build_defocus_pyramid_backbone`. ``MODEL.BACKBONE.FREEZE_AT`` is ResNet's; ``frozen_stages``
    in ``OPTIONS`` freezes.
    """
    config.MODEL.DEFOCUS = CfgNode()
    config.MODEL.DEFOCUS.FAMILY = "DefocusMamba"
    config.MODEL.DEFOCUS.OPTIONS = CfgNode(new_allowed=True)
    config.MODEL.DEFOCUS.PYRAMID = CfgNode()
    config.MODEL.DEFOCUS.PYRAMID.OUT_CHANNELS = 256
    config.MODEL.DEFOCUS.PYRAMID.SCALE_FACTORS = [4.0, 2.0, 1.0, 0.5]
    # One level more by subsampling the last: p6, which stock R-CNN configs use.
    config.MODEL.DEFOCUS.PYRAMID.TOP_BLOCK = True
    config.MODEL.DEFOCUS.PYRAMID.SQUARE_PAD = 0


add_defocus_config(default_config)


@BACKBONE_REGISTRY.register()
def build_defocus_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NamedMaps:
    """The backbone alone, of ``cfg.MODEL.DEFOCUS``."""
    family = cfg.MODEL.DEFOCUS.FAMILY
    if family not in defocus.FAMILIES:
        raise ValueError(f"MODEL.DEFOCUS.FAMILY is {family!r}; it must be one of {', '.join(defocus.FAMILIES)}")
    return globals()[family](in_channels=input_shape.channels, **_plain(cfg.MODEL.DEFOCUS.OPTIONS))


@BACKBONE_REGISTRY.register()
def build_defocus_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Detectron2's simple feature pyramid on the last map of the backbone, with the released pyramid's norms."""
    net = build_defocus_backbone(cfg, input_shape)
    pyramid = cfg.MODEL.DEFOCUS.PYRAMID
    top_block = None
    if pyramid.TOP_BLOCK:
        top_block = LastLevelMaxPool()
        stride = net.output_shape()[net._out_features[-1]].stride / pyramid.SCALE_FACTORS[-1]
        top_block.in_feature = f"p{int(stride).bit_length() - 1}"
    return SimpleFeaturePyramid(
        net=net,
        in_feature=net._out_features[-1],
        out_channels=pyramid.OUT_CHANNELS,
        scale_factors=pyramid.SCALE_FACTORS,
        top_block=top_block,
        norm=LayerNorm2d,
        square_pad=pyramid.SQUARE_PAD,
    )


# ---- Checkpoints

# Beside a backbone's tensors: what they were made of. Detectron2 drops tensors of other shapes before it loads.
_SOURCE = "defocus_source"


def _refuse_other_sizes(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Raises CheckpointError where a file that `DefocusCheckpoints` converted does not fit a backbone."""
    note = state_dict.pop(prefix + _SOURCE, None)
    if note is None:
        return
    source = json.loads(bytes(note.tolist()))
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = {name: tuple(shape) for name, shape in source["shapes"].items()}
    check_shapes(f"checkpoint {source['file']}", shapes, type(module).__name__, own)


class DefocusCheckpoints(PathHandler):
    """Released files, mmdet's, and any that `read_checkpoint` reads, where Detectron2 expects its own.

    ``train.init_checkpoint=defocus:FILE`` (``MODEL.WEIGHTS`` in YAML) converts ``FILE`` into Detectron2's names. The
    backbone goes below ``backbone.net.``, where `SimpleFeaturePyramid` and `AdaptedBackbone` have it;
    ``defocus:FILE#backbone.`` puts it elsewhere. Detectron2 itself warns of what does not fit and trains on without it,
    which is right for heads of other classes; a backbone of another size is a CheckpointError.
    """

    PREFIX = "defocus:"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def __init__(self):
        super().__init__()
        # Open until the process ends.
        self._files = []

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        file, _, prefix = path.removeprefix(self.PREFIX).partition("#")
        prefix = prefix or "backbone.net."
        checkpoint = read_checkpoint(file)
        try:
            weights, container = weights_of(checkpoint)
            converted, left = to_detectron2(weights, prefix)
            check_finite(converted)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {file}: {error}") from None
        average = ", a moving average" if container and container == find_average(checkpoint) else ""
        where = f" [{container}{average}]" if container else ""
        logger.info(
            "%s%s: %d tensors; left out %d: %s", file, where, len(converted), len(left), ", ".join(left) or "none"
        )
        shapes = {name: tuple(value.shape) for name, value in converted.items() if name.startswith(prefix)}
        note = json.dumps(dict(file=file, shapes={name.removeprefix(prefix): shape for name, shape in shapes.items()}))
        converted[prefix + _SOURCE] = torch.frombuffer(bytearray(note.encode()), dtype=torch.uint8)
        # A file without a name, which no signal can leave behind, and which each reader opens anew below this one.
        target = tempfile.TemporaryFile(prefix="defocus-")  # noqa: SIM115
        torch.save({"model": converted}, target)
        target.flush()
        self._files.append(target)
        return f"/proc/self/fd/{target.fileno()}"


PathManager.register_handler(DefocusCheckpoints(), allow_override=True)


def _default_names(strides: tuple[int, ...]) -> tuple[str, ...]:
    if len(strides) == 1:
        return ("last_feat",)
    powers = all(stride & (stride - 1) == 0 for stride in strides)
    if powers and len(set(strides)) == len(strides):
        return tuple(f"p{stride.bit_length() - 1}" for stride in strides)
    return tuple(f"map{i}" for i in range(len(strides)))


def _plain(value):
    """Dicts and lists instead of omegaconf's and yacs' containers."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value

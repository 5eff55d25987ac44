"""What our integration takes from Detectron2 and omegaconf, as far as tests without them need it.

Written from their documented behaviour; where Detectron2 is installed, `tests/integrations/test_detectron2_stand_in.py`
compares the two.
"""

import os
import re
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn


@dataclass
class ShapeSpec:
    """Shape of a map, as far as it is known."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module):
    """Maps by name; a subclass fills three tables that tell of them."""

    size_divisibility = 0
    padding_constraints: dict = {}  # noqa: RUF012  a property in Detectron2, and replaced by ours

    def output_shape(self) -> dict[str, ShapeSpec]:
        """What each map will be."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


class Recorded(nn.Module):
    """A module of Detectron2 that ours only builds: keeps what it was built with."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings


class Registry(dict):
    """Functions by their names, entered by a decorator."""

    def register(self):
        """The decorator."""
        return lambda function: self.setdefault(function.__name__, function)


class CfgNode(dict):
    """A configuration: keys that are attributes."""

    def __init__(self, content=None, new_allowed: bool = False):
        super().__init__(content or {})
        # No key of it.
        vars(self)["new_allowed"] = new_allowed

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Catalog(dict):
    """Data sets and what is known of them, by name."""

    def get(self, name: str) -> dict:
        """What is known of a data set; nothing of one that is new."""
        return self.setdefault(name, {})


class PathManager:
    """Files by their paths, and by the prefixes of handlers."""

    def __init__(self):
        self.handlers = {}

    exists = staticmethod(os.path.exists)
    open = staticmethod(open)

    def register_handler(self, handler, allow_override: bool = False) -> None:
        """Enters a handler for each of its prefixes."""
        self.handlers |= dict.fromkeys(handler._get_supported_prefixes(), handler)

    def get_local_path(self, path: str) -> str:
        """What the handler of a path makes of it."""
        (handler,) = (handler for prefix, handler in self.handlers.items() if path.startswith(prefix))
        return handler._get_local_path(path)


def vit_lr_decay_rate(name: str, lr_decay_rate: float, num_layers: int) -> float:
    """Layer 0 is the patch embedding, i + 1 block i, and the last one all else; each learns slower than the next."""
    layer = num_layers + 1
    if name.startswith("backbone"):
        block = re.search(r"\.blocks\.(\d+)", name)
        layer = int(block[1]) + 1 if block else (0 if ".patch_embed" in name else layer)
    return lr_decay_rate ** (num_layers + 1 - layer)


def default_optimizer_params(model: nn.Module, base_lr: float, weight_decay: float) -> list[dict]:
    """A group of one parameter each."""
    return [dict(params=[p], lr=base_lr, weight_decay=weight_decay) for p in model.parameters() if p.requires_grad]


def modules() -> dict[str, ModuleType]:
    """A new Detectron2, and omegaconf, by the names under which they are imported."""
    catalog, metadata = Catalog(), Catalog()

    def register_coco_instances(name, known, json_file, image_root):
        catalog[name], metadata[name] = {}, dict(json_file=json_file, image_root=image_root)

    default = CfgNode(dict(MODEL=CfgNode()))
    contents = {
        "detectron2": dict(__version__="0.6"),
        "detectron2.config": dict(CfgNode=CfgNode),
        "detectron2.config.defaults": dict(_C=default),
        "detectron2.data": dict(DatasetCatalog=catalog, MetadataCatalog=metadata),
        "detectron2.data.datasets": dict(register_coco_instances=register_coco_instances),
        "detectron2.engine": dict(HookBase=object),
        "detectron2.layers": dict(ShapeSpec=ShapeSpec),
        "detectron2.modeling": dict(
            BACKBONE_REGISTRY=Registry(), Backbone=Backbone, SimpleFeaturePyramid=type("Pyramid", (Recorded,), {})
        ),
        "detectron2.modeling.backbone": {},
        "detectron2.modeling.backbone.fpn": dict(LastLevelMaxPool=type("LastLevelMaxPool", (Recorded,), {})),
        "detectron2.modeling.backbone.vit": dict(get_vit_lr_decay_rate=vit_lr_decay_rate),
        "detectron2.solver": {},
        "detectron2.solver.build": dict(
            get_default_optimizer_params=default_optimizer_params, reduce_param_groups=lambda groups: groups
        ),
        "detectron2.utils": {},
        "detectron2.utils.file_io": dict(PathHandler=object, PathManager=PathManager()),
        "omegaconf": dict(OmegaConf=SimpleNamespace(is_config=lambda value: False)),
    }
    made = {}
    for name, content in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(content)
    return made


def state_dict_of(file: str) -> dict[str, Tensor]:
    """The weights that Detectron2's checkpointer reads from a file, under the key where it looks for them."""
    return torch.load(file, weights_only=True)["model"]

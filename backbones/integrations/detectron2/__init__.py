"""The backbones as Detectron2's own: for lazy configs, and by name for YAML configs.

    from backbones.integrations.detectron2 import DefocusMamba

    model.backbone = L(SimpleFeaturePyramid)(net=L(DefocusMamba)(arch="base"), in_feature="last_feat", ...)

Every family of `backbones.defocus` stands here under its name, as a `detectron2.modeling.Backbone`. Importing this
package registers the builders for YAML, gives Detectron2's default configuration the node ``MODEL.DEFOCUS``, and lets
checkpoints be named as ``defocus:FILE``. ``import backbones`` alone does not import it: configs name what they use.
`results` and `resume` are for runs that are scored by leaderboards' rules and for those that are interrupted.
"""

from backbones.integrations.frameworks import needed

with needed("detectron2"):
    from backbones.integrations.detectron2.checkpoints import DefocusCheckpoints
    from backbones.integrations.detectron2.data import count_categories, register_coco_json
    from backbones.integrations.detectron2.named_maps import BACKBONES, AdaptedBackbone, NamedMaps
    from backbones.integrations.detectron2.optimization import get_lr_decay_rate, get_optimizer_params
    from backbones.integrations.detectron2.threads import ThreadCountHook
    from backbones.integrations.detectron2.yaml_config import (
        add_defocus_config,
        build_defocus_backbone,
        build_defocus_pyramid_backbone,
    )

globals().update(BACKBONES)

__all__ = [
    "AdaptedBackbone",
    "DefocusCheckpoints",
    "NamedMaps",
    "ThreadCountHook",
    "add_defocus_config",
    "build_defocus_backbone",
    "build_defocus_pyramid_backbone",
    "count_categories",
    "get_lr_decay_rate",
    "get_optimizer_params",
    "register_coco_json",
    *BACKBONES,
]

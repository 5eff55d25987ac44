"""The backbones by name, for YAML configs: ``MODEL.BACKBONE.NAME`` and the node ``MODEL.DEFOCUS``."""

from detectron2.config import CfgNode
from detectron2.config.defaults import _C as default_config
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from backbones.integrations.detectron2.named_maps import BACKBONES, NamedMaps, plain
from backbones.layers.norms import LayerNorm2d


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
    """The backbone alone, of ``cfg.MODEL.DEFOCUS``.

    Raises:
        ValueError: ``FAMILY`` is none, or an option is none of the family's or outside its range.
    """
    family = cfg.MODEL.DEFOCUS.FAMILY
    if family not in BACKBONES:
        raise ValueError(f"MODEL.DEFOCUS.FAMILY is {family!r}; it must be one of {', '.join(BACKBONES)}")
    return BACKBONES[family](in_channels=input_shape.channels, **plain(cfg.MODEL.DEFOCUS.OPTIONS))


@BACKBONE_REGISTRY.register()
def build_defocus_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Detectron2's simple feature pyramid on the last map of the backbone, with the released pyramid's norms.

    Raises:
        ValueError: As of `build_defocus_backbone`.
    """
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

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from .common.base import backbone as _backbone
from .common.base import lr_multiplier, optimizer, train
from .common.base import pixels as _pixels
from .common.semantic import dataloader

model = L(SemanticSegmentor)(
    backbone=_backbone,
    sem_seg_head=L(SemSegFPNHead)(
        input_shape={
            f"p{level}": L(ShapeSpec)(stride=2**level, channels="${....backbone.out_channels}")
            for level in (2, 3, 4, 5)
        },
        ignore_value=255,
        num_classes=54,
        conv_dims=128,
        common_stride=4,
        norm="GN",
    ),
    **_pixels,
)

train.output_dir = "work_dirs/semantic_fpn_defocus_mamba_base_3x"

# DeepLabV3+ on three maps of the pyramid: stride 16 for its atrous convolutions, 8 and 4 for details.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SemanticSegmentor
from detectron2.projects.deeplab import DeepLabV3PlusHead

from .common.base import backbone as _backbone
from .common.base import lr_multiplier, optimizer, train
from .common.base import pixels as _pixels
from .common.semantic import dataloader

_backbone.num_outs = 3  # p2 to p4
model = L(SemanticSegmentor)(
    backbone=_backbone,
    sem_seg_head=L(DeepLabV3PlusHead)(
        input_shape={
            f"p{level}": L(ShapeSpec)(stride=2**level, channels="${....backbone.out_channels}") for level in (2, 3, 4)
        },
        project_channels=[64, 64],
        aspp_dilations=[6, 12, 18],
        aspp_dropout=0.1,
        decoder_channels=[256, 256, 256],
        common_stride=4,
        norm="GN",
        train_size=None,
        loss_type="hard_pixel_mining",
        ignore_value=255,
        num_classes=54,
    ),
    **_pixels,
)

train.output_dir = "work_dirs/deeplab_v3_plus_defocus_mamba_base_3x"

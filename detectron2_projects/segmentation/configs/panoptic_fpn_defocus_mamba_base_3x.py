from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from backbones.integrations.detectron2.results import PanopticResults

from .common.base import backbone as _backbone
from .common.base import lr_multiplier, optimizer, train
from .common.base import pixels as _pixels

dataloader = model_zoo.get_config("common/data/coco_panoptic_separated.py").dataloader
dataloader.train.mapper.image_format = "RGB"
# Boxes and masks, semantic maps, panoptic maps: files of each last; Detectron2's own evaluator drops panoptic PNGs.
for _evaluator in dataloader.evaluator[:2]:
    _evaluator.output_dir = "${train.output_dir}/inference"
dataloader.evaluator[2] = L(PanopticResults)(
    dataset_name="${...test.dataset.names}", output_dir="${train.output_dir}/inference"
)

model = model_zoo.get_config("common/models/panoptic_fpn.py").model
model.update(backbone=_backbone, input_format="RGB", **_pixels)
model.backbone.num_outs = 5  # p6 for the proposals
train.output_dir = "work_dirs/panoptic_fpn_defocus_mamba_base_3x"

# A Mask R-CNN that learns drawn shapes from scratch on a laptop's CPU: what `make demo-d2` trains.
import detectron2.data.transforms as T
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from backbones.integrations.detectron2 import DefocusMamba, get_optimizer_params

from ..common.coco_json import data, dataloader

data.root = "work_dirs/shapes"
data.train_json = "${data.root}/annotations/instances_train.json"
data.test_json = "${data.root}/annotations/instances_val.json"
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.test.mapper.augmentations = []
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.num_workers = 1

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.input_format = "RGB"
model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [60.0, 60.0, 60.0]

channels = 96
model.backbone = L(SimpleFeaturePyramid)(
    net=L(DefocusMamba)(arch=dict(embed_dims=128, inner_dims=256, depth=6, dt_rank=8), patch_size=8),
    in_feature="last_feat",
    out_channels=channels,
    scale_factors=(2.0, 1.0, 0.5),
)
levels = ["p2", "p3", "p4"]
strides = [4, 8, 16]

model.proposal_generator.in_features = levels
model.proposal_generator.head.in_channels = channels
model.proposal_generator.head.num_anchors = 1
model.proposal_generator.anchor_generator.update(sizes=[[16], [32], [64]], aspect_ratios=[1.0], strides=strides)
model.proposal_generator.update(batch_size_per_image=64, pre_nms_topk=(300, 200), post_nms_topk=(100, 60))

_heads = model.roi_heads
_heads.update(
    num_classes="${data.num_classes}",
    batch_size_per_image=32,
    positive_fraction=0.25,
    box_in_features=levels,
    mask_in_features=levels,
)
for _pooler in (_heads.box_pooler, _heads.mask_pooler):
    _pooler.scales = [1 / stride for stride in strides]
    # Shapes are smaller than the things in photographs, whose size of 224 pixels belongs to level 4.
    _pooler.update(canonical_box_size=56, canonical_level=4, sampling_ratio=1)
_heads.box_head.update(
    input_shape=ShapeSpec(channels=channels, height=7, width=7), conv_dims=[96, 96], fc_dims=[256], conv_norm="LN"
)
_heads.box_predictor.input_shape = ShapeSpec(channels=256)
_heads.mask_head.update(
    input_shape=ShapeSpec(channels=channels, height=14, width=14), conv_dims=[48, 48], conv_norm="LN"
)

train = model_zoo.get_config("common/train.py").train
train.output_dir = "work_dirs/demo_d2"
train.device = "cuda" if torch.cuda.is_available() else "cpu"
train.max_iter = 2400
train.eval_period = 1200
train.checkpointer.update(period=100, max_to_keep=2)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.04,
    warmup_factor=0.01,
)
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params._target_ = get_optimizer_params
optimizer.lr = 1e-3
optimizer.weight_decay = 0.05

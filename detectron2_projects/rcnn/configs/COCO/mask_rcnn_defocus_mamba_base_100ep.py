# ViTDet's recipe (arXiv 2203.16527) with De-focus Mamba in place of ViT.
from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from backbones.integrations.detectron2 import DefocusMamba, get_lr_decay_rate, get_optimizer_params
from backbones.layers.norms import LayerNorm2d

from ..common.coco_loader_lsj import dataloader

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.net = L(DefocusMamba)(
    arch="base",
    section_size=224,  # the pre-training resolution
    rope_scale=20.0,  # about (1024 / 224)^2, the ratio of sequence lengths
    delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
    drop_path_rate=0.1,
    with_cp=True,
)
model.backbone.in_feature = "last_feat"
model.backbone.norm = LayerNorm2d  # of the released pyramid; Detectron2's "LN" has another epsilon

train = model_zoo.get_config("common/train.py").train
train.output_dir = "work_dirs/mask_rcnn_defocus_mamba_base_100ep"
train.init_checkpoint = "defocus:defocus_mamba_base_cls.pth"
train.amp.enabled = True
train.ddp.fp16_compression = True

# 100 epochs = 184375 iterations × 64 images / 118000 images an epoch
train.max_iter = 184375
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        milestones=[163889, 177546],
        num_updates="${train.max_iter}",
    ),
    warmup_length=250 / train.max_iter,
    warmup_factor=0.001,
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params._target_ = get_optimizer_params
# ViTDet takes 0.7 for 12 blocks and 0.8 for 24.
optimizer.params.lr_factor_func = partial(get_lr_decay_rate, lr_decay_rate=0.8, num_layers=24)

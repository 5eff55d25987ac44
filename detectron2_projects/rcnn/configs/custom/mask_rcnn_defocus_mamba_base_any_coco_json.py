# Fine-tunes on any COCO json with masks: give data.root, and data.train_json etc. where the files have other names.
from ..COCO.mask_rcnn_defocus_mamba_base_100ep import dataloader as _lsj
from ..COCO.mask_rcnn_defocus_mamba_base_100ep import lr_multiplier, model, optimizer, train
from ..common.coco_json import data, dataloader

dataloader.train.mapper = _lsj.train.mapper
dataloader.test.mapper = _lsj.test.mapper
dataloader.train.total_batch_size = 16
model.roi_heads.num_classes = "${data.num_classes}"

train.output_dir = "work_dirs/mask_rcnn_defocus_mamba_base_any_coco_json"
train.max_iter = 18000
lr_multiplier.scheduler.milestones = [12000, 16000]
lr_multiplier.warmup_length = 250 / train.max_iter

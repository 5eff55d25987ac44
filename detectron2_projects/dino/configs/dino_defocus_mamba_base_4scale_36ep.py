# Released result 53.2 box AP on COCO val2017, under mmdet.
from .dino_defocus_mamba_base_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "work_dirs/dino_defocus_mamba_base_4scale_36ep"
train.max_iter = 36 * 7500
lr_multiplier.scheduler.update(values=[1.0, 0.1, 0.01], milestones=[27 * 7500, 33 * 7500, 36 * 7500])

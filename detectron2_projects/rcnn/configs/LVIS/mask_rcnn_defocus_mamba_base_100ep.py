from ..COCO.mask_rcnn_defocus_mamba_base_100ep import dataloader, lr_multiplier, model, optimizer, train
from ..common.lvis import use_lvis

use_lvis(dataloader, model, train, lr_multiplier)
train.output_dir = "work_dirs/mask_rcnn_defocus_mamba_base_100ep_lvis"
optimizer.lr = 2e-4

from ..common.cascade import roi_heads as _roi_heads
from .mask_rcnn_defocus_mamba_small_100ep import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads = _roi_heads

train.output_dir = "work_dirs/cascade_mask_rcnn_defocus_mamba_small_100ep"

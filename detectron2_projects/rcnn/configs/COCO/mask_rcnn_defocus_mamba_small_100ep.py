from .mask_rcnn_defocus_mamba_base_100ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.arch = "small"

train.output_dir = "work_dirs/mask_rcnn_defocus_mamba_small_100ep"
train.init_checkpoint = "defocus:defocus_mamba_small_cls.pth"

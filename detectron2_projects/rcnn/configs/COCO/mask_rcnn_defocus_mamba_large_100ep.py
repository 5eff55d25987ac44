from functools import partial

from .mask_rcnn_defocus_mamba_base_100ep import (
    dataloader,
    get_lr_decay_rate,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.net.update(
    arch="large",
    section_size=384,  # the pre-training resolution
    rope_scale=7.13,  # about (1024 / 384)^2
    delta_scale=2.67,  # 1024 / 384
    drop_path_rate=0.4,
)

train.output_dir = "work_dirs/mask_rcnn_defocus_mamba_large_100ep"
train.init_checkpoint = "defocus:defocus_mamba_large_cls_1k.pth"

# The first block learns as slowly as in the base model: 0.9^48 = 0.8^23.
optimizer.params.lr_factor_func = partial(get_lr_decay_rate, lr_decay_rate=0.9, num_layers=48)

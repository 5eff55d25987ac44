from .dino_defocus_mamba_base_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(
    arch="large",
    section_size=384,  # the pre-training resolution
    rope_scale=7.13,  # about (1024 / 384)^2
    delta_scale=2.67,  # 1024 / 384
)

train.output_dir = "work_dirs/dino_defocus_mamba_large_4scale_12ep"
train.init_checkpoint = "defocus:defocus_mamba_large_cls_1k.pth"

_base_ = './dino-4scale_defocus-mamba-base_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        section_size=384,  # the pre-training resolution
        rope_scale=7.13,  # about (1024 / 384)^2
        delta_scale=2.67),  # 1024 / 384
    neck=dict(in_channels=1024))

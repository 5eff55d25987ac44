_base_ = './cascade-mask-rcnn_defocus-mamba-base_8xb2-lsj-36e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        section_size=384,  # the pre-training resolution
        rope_scale=7.11,  # (1024 / 384)^2
        delta_scale=2.67,  # 1024 / 384
        drop_path_rate=0.5),
    neck=dict(in_channels=1024))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))  # twice as many blocks

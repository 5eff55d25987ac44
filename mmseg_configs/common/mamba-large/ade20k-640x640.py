# Mamba-L on crops of 640 pixels, whatever the head.
crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        net=dict(
            arch='large',
            out_indices=(11, 23, 35, 47),
            section_size=384,  # the pre-training resolution
            rope_scale=2.78,  # (640 / 384)^2
            delta_scale=1.67,  # 640 / 384
            drop_path_rate=0.5,
            with_cp=True)))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2560, 640), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]

# The patch embedding learns at 0.95^49 = 0.08 of the rate of the heads.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))

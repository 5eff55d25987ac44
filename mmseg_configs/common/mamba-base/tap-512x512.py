# Mamba-B by taps of four depths on crops of 512 pixels, whatever the head.
channels = 256
model = dict(
    backbone=dict(
        _delete_=True,
        type='AdaptedBackbone',
        net=dict(
            type='DefocusMamba',
            arch='base',
            out_indices=(5, 11, 17, 23),
            section_size=224,  # the pre-training resolution
            rope_scale=5.22,  # (512 / 224)^2, the ratio of sequence lengths
            delta_scale=2.29,  # 512 / 224, the ratio of resolutions
            drop_path_rate=0.4,
        ),
        adapter=dict(type='TapPyramid', out_channels=channels),
    ),
    decode_head=dict(in_channels=[channels] * 4),
)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

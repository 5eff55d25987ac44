# What all R-CNNs of mmdet change: backbone and pyramid, optimizer and hooks.
custom_imports = dict(imports=['backbones.integrations.openmmlab'])

model = dict(
    backbone=dict(
        _delete_=True,
        type='DefocusMamba',
        arch='base',
        section_size=224,  # the pre-training resolution
        rope_scale=20.9,  # (1024 / 224)^2, the ratio of sequence lengths
        delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
        drop_path_rate=0.3,
        with_cp=True),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=768, out_channels=256, num_outs=5))

# The patch embedding learns at 0.9^25 = 0.07 of the rate of the heads.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
    clip_grad=dict(max_norm=1.0))
custom_hooks = [dict(type='CheckAnnotationsHook')]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

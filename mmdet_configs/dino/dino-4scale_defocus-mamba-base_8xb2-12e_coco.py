# The published recipe (arXiv 2406.04342): released result 50.2 box AP on COCO val2017.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'])

model = dict(
    backbone=dict(
        _delete_=True,
        type='DefocusMamba',
        arch='base',
        section_size=224,  # the pre-training resolution
        rope_scale=20.0,  # about (1024 / 224)^2, the ratio of sequence lengths
        delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
        drop_path_rate=0.5,
        with_cp=True),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=768, out_channels=256, num_outs=4))

optim_wrapper = dict(
    constructor='ReducedGroupsOptimWrapperConstructor',
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        custom_keys={
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1),
            # One key decides for a parameter: the longest that its name contains, the first in the alphabet among
            # equals. So these three outrank 'backbone', whose lr_mult they repeat.
            'mixer.A_log': dict(lr_mult=0.1, decay_mult=0.0),
            'mixer.freq': dict(lr_mult=0.1, decay_mult=0.0),
            '.mixer.D': dict(lr_mult=0.1, decay_mult=0.0),
        }))
# `--auto-scale-lr` asks for this key, which the stock DINO leaves out.
auto_scale_lr = dict(enable=False)
custom_hooks = [dict(type='CheckAnnotationsHook'), dict(type='DeformableAttentionHook')]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

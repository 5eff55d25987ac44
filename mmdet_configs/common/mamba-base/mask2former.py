# What Mask2Former changes for instances and for panoptic segmentation alike.
custom_imports = dict(imports=['backbones.integrations.openmmlab'])

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
            rope_scale=20.9,  # (1024 / 224)^2, the ratio of sequence lengths
            delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
            drop_path_rate=0.3,
            with_cp=True),
        adapter=dict(type='TapPyramid', out_channels=channels)),
    panoptic_head=dict(in_channels=[channels] * 4))

# Layer-wise decay takes the place of the one rate for the backbone.
undecayed = dict(decay_mult=0.0)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        custom_keys=dict(query_embed=undecayed, query_feat=undecayed, level_embed=undecayed)))
custom_hooks = [dict(type='CheckAnnotationsHook'), dict(type='DeformableAttentionHook')]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

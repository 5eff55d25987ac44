# Rates of Mask2Former's own recipe, 1e-4 and the backbone by layer-wise decay below it.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab', 'mmdet.models'], allow_failed_imports=False)

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
            drop_path_rate=0.4),
        adapter=dict(type='TapPyramid', out_channels=channels)),
    decode_head=dict(in_channels=[channels] * 4))

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

# A light head: each scale through one linear layer, then one more over all of them.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'], allow_failed_imports=False)

channels = 256
model = dict(
    # Maps cover whole patches: an image of another size is padded and its prediction cut, not squeezed onto it.
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
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

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, custom_keys=dict(decode_head=dict(lr_mult=10.0))))
custom_hooks = [dict(type='CheckAnnotationsHook')]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

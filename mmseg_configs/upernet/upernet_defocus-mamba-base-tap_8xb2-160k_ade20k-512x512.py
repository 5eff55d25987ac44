# The field's recipe for UPerNet on a plain backbone; De-focus published no segmentation result.
# Not 'mmseg::vit/…': mmengine resolves that by the name of the distribution, which drop-ins of mmsegmentation change.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'], allow_failed_imports=False)

channels = 256
model = dict(
    pretrained=None,
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
    neck=None,
    decode_head=dict(in_channels=[channels] * 4),
    auxiliary_head=dict(in_channels=channels, in_index=2))

# The patch embedding learns at 0.9^25 = 0.07 of the rate of the heads.
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9))
custom_hooks = [dict(type='CheckAnnotationsHook')]
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

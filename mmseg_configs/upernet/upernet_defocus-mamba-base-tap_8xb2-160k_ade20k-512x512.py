# The field's recipe for UPerNet on a plain backbone; De-focus published no segmentation result.
# Not 'mmseg::vit/…': mmengine resolves that by the name of the distribution, which drop-ins of mmsegmentation change.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'], allow_failed_imports=False)

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/tap-512x512.py')
channels, default_hooks = __common.channels, __common.default_hooks
model = dict(
    pretrained=None,
    # Maps cover whole patches: an image of another size is padded and its prediction cut, not squeezed onto it.
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    neck=None,
    auxiliary_head=dict(in_channels=channels, in_index=2),
    **__common.model,
)

# The patch embedding learns at 0.9^25 = 0.07 of the rate of the heads.
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9),
)
custom_hooks = [dict(type='CheckAnnotationsHook')]

# A light head: each scale through one linear layer, then one more over all of them.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'], allow_failed_imports=False)

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/tap-512x512.py')
channels, default_hooks = __common.channels, __common.default_hooks
model = dict(
    # Maps cover whole patches: an image of another size is padded and its prediction cut, not squeezed onto it.
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    **__common.model,
)

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
custom_hooks = [dict(type='CheckAnnotationsHook')]

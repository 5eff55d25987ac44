# Trains on crops; tests by a window that slides over the whole image, so that sequences stay those of training.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab'], allow_failed_imports=False)

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/tap-512x512.py')
channels, default_hooks = __common.channels, __common.default_hooks
__common.model.backbone.net.update(
    rope_scale=10.45,  # 512 * 1024 / 224^2, the ratio of sequence lengths
    delta_scale=3.23,
)  # its square root
model = dict(
    pretrained=None,
    # Maps cover whole patches: an image of another size is padded and its prediction cut, not squeezed onto it.
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    auxiliary_head=dict(in_channels=channels),
    test_cfg=dict(mode='slide', crop_size=(512, 1024), stride=(341, 683)),
    **__common.model,
)

max_iters = 80000
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
custom_hooks = [dict(type='CheckAnnotationsHook')]

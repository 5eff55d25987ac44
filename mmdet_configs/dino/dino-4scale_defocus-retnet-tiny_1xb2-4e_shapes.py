_base_ = './dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py'

model = dict(backbone=dict(type='DefocusRetNet', arch=dict(_delete_=True, embed_dims=192, depth=6, num_heads=3, value_dims=192, ffn_dims=256)))
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys={
            'bandpass.log_rate': dict(decay_mult=0.0),
            'bandpass.freq': dict(decay_mult=0.0),
        }))

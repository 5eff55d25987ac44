_base_ = './upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(net=dict(type='DefocusViT', out_indices=(2, 5, 8, 11))))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))  # half as many blocks

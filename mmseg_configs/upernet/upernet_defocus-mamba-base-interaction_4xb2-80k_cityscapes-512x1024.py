_base_ = './upernet_defocus-mamba-base-tap_4xb2-80k_cityscapes-512x1024.py'

model = dict(backbone=dict(adapter=dict(type='InteractionAdapter')))

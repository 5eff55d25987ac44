_base_ = './upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(adapter=dict(type='SimpleFPN')))

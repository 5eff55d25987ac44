_base_ = './upernet_defocus-mamba-large-tap_8xb2-160k_ade20k-640x640.py'

model = dict(backbone=dict(adapter=dict(type='InteractionAdapter', num_heads=16)))

# No result was published for this backbone on COCO.
_base_ = './dino-4scale_defocus-mamba-base_8xb2-12e_coco.py'

model = dict(backbone=dict(type='DefocusRetNet'))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # Decay rates and frequencies of the heads, as A_log and freq of the scan.
            'bandpass.log_rate': dict(lr_mult=0.1, decay_mult=0.0),
            'bandpass.freq': dict(lr_mult=0.1, decay_mult=0.0),
        }))

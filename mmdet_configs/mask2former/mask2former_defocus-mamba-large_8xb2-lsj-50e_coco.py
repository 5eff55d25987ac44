_base_ = './mask2former_defocus-mamba-base_8xb2-lsj-50e_coco.py'

model = dict(
    backbone=dict(
        net=dict(
            arch='large',
            out_indices=(11, 23, 35, 47),
            section_size=384,  # the pre-training resolution
            rope_scale=7.11,  # (1024 / 384)^2
            delta_scale=2.67,  # 1024 / 384
            drop_path_rate=0.5)))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))  # twice as many blocks

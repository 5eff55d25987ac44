# A segmentor that learns drawn shapes from scratch on a laptop's CPU: what `make demo-seg` trains.
_base_ = './upernet_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py'

data_root = 'work_dirs/shapes/'
classes = ('background', 'circle', 'square', 'triangle', 'star', 'ring', 'cross')
palette = [[90, 90, 90], [230, 90, 70], [70, 130, 230], [80, 190, 90], [240, 190, 50], [170, 90, 210], [60, 200, 200]]

channels = 64
# Three quarters of the pixels are background.
loss = dict(class_weight=[0.3] + [1.0] * 6)
head = dict(num_classes=len(classes), norm_cfg=dict(type='BN', requires_grad=True), loss_decode=loss)
model = dict(
    data_preprocessor=dict(
        size=(160, 160),
        mean=[127.5, 127.5, 127.5],
        std=[60.0, 60.0, 60.0],
        # What is added to an image is background: weights of classes and pixels to ignore are too much for mmseg 1.2.2.
        seg_pad_val=0),
    backbone=dict(
        net=dict(
            arch=dict(_delete_=True, embed_dims=192, inner_dims=384, depth=6, dt_rank=12),
            patch_size=8,
            out_indices=(5,),
            section_size=None,
            rope_scale=1.0,
            delta_scale=1.0,
            drop_path_rate=0.0),
        # Strides 8 to 64 of patches of 8: a finer map costs the head more steps than it gains in outlines.
        adapter=dict(_delete_=True, type='SimpleFPN', out_channels=channels, start_level=2)),
    # A causal token knows only what precedes it: the head gathers what a shape's later part says of the whole.
    decode_head=dict(in_channels=[channels] * 4, channels=128, **head),
    auxiliary_head=dict(in_channels=channels, channels=channels, **head))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette))
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **dataset,
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **dataset,
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader

# From scratch, in a few thousand steps, nothing is to be trained more slowly than the rest.
max_iters = 3600
optim_wrapper = dict(
    optimizer=dict(lr=8e-4, fused=True), paramwise_cfg=dict(layer_decay_rate=1.0), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=1800)
custom_hooks = [dict(type='CheckAnnotationsHook'), dict(type='ThreadCountHook')]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=500, max_keep_ckpts=2))

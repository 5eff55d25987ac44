# Learns boxes and masks of drawn shapes from scratch on a laptop's CPU.
_base_ = './mask-rcnn_defocus-mamba-base_8xb2-12e_coco.py'

data_root = 'work_dirs/shapes/'
classes = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')

channels = 64
strides = [4, 8, 16, 32]
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0], pad_size_divisor=8),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, inner_dims=384, depth=6, dt_rank=12),
        patch_size=8,
        section_size=None,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.0,
        with_cp=False),
    neck=dict(in_channels=192, out_channels=channels, num_outs=4, start_level=1),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # Squares of 12 to 136 pixels: the shapes are about as wide as high.
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=2,
            ratios=[1.0],
            strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=strides),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=len(classes)),
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=strides),
        mask_head=dict(num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=len(classes))),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=50)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'flip', 'flip_direction')),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        **dataset,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# From scratch, in some hundred steps, nothing is to be trained more slowly than the rest.
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=1.0), clip_grad=dict(max_norm=5.0))

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=8)

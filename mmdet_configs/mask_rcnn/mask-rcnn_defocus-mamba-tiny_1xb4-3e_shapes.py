# Learns boxes and masks of drawn shapes from scratch on a laptop's CPU.
_base_ = './mask-rcnn_defocus-mamba-base_8xb2-12e_coco.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/data/shapes.py')
data_root, classes, train_dataloader = __common.data_root, __common.classes, __common.train_dataloader
val_dataloader, test_dataloader = __common.val_dataloader, __common.test_dataloader
val_evaluator, test_evaluator = __common.val_evaluator, __common.test_evaluator
train_dataloader.update(batch_size=4, num_workers=1)
for __loader in (train_dataloader, val_dataloader, test_dataloader):
    __loader.dataset.pipeline[1].with_mask = True

channels = 96
strides = [4, 8, 16]
# Shapes are smaller than the things in photographs: up to 28 pixels they are read at stride 4, up to 56 at stride 8.
extractor = dict(
    roi_layer=dict(sampling_ratio=1), out_channels=channels, featmap_strides=strides, finest_scale=14)
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0], pad_size_divisor=16),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, inner_dims=256, depth=6, dt_rank=8),
        patch_size=8,
        section_size=None,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.0,
        with_cp=False),
    neck=dict(in_channels=128, out_channels=channels, num_outs=3, start_level=1),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        # Squares of 16, 32 and 64 pixels: the shapes are about as wide as high.
        anchor_generator=dict(scales=[4], ratios=[1.0], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=len(classes)),
        mask_roi_extractor=extractor,
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=48,
            norm_cfg=norm_cfg,
            num_classes=len(classes))),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=60), rcnn=dict(max_per_img=50)))

# From scratch, in a few thousand steps, nothing is to be trained more slowly than the rest.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, fused=True), paramwise_cfg=dict(layer_decay_rate=1.0), clip_grad=dict(max_norm=5.0))

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True),
]
custom_hooks = [dict(type='CheckAnnotationsHook'), dict(type='ThreadCountHook')]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=4)

# Your own images, boxes in COCO's format, small enough for a CPU: --cfg-options data_root=FOLDER is the one setting.
# Starts from what `make demo` trained, where that is there.
_base_ = './dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes.py'

runner_type = 'CocoJsonRunner'  # finds the files, reads the classes, sets num_classes
data_root = 'data/coco_json'
start_from = 'work_dirs/demo/dino-4scale_defocus-mamba-tiny_1xb2-4e_shapes/epoch_4.pth'

model = dict(test_cfg=dict(max_per_img=100))

longest = 400
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoiceResize', scales=[(longest, short) for short in (208, 240, 272)], keep_ratio=True),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'flip', 'flip_direction')),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(longest, 240), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# As many steps whatever the number of images: minutes, not hours.
max_iters = 1500
optim_wrapper = dict(optimizer=dict(lr=5e-4))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=max_iters // 2))
log_processor = dict(by_epoch=False)

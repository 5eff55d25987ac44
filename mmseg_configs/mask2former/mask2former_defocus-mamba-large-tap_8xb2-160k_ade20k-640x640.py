_base_ = './mask2former_defocus-mamba-base-tap_8xb2-160k_ade20k-512x512.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-large/ade20k-640x640.py')
crop_size, model, optim_wrapper = __common.crop_size, __common.model, __common.optim_wrapper
test_pipeline = __common.test_pipeline

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomChoiceResize',
        scales=[64 * x for x in range(5, 21)],
        resize_type='ResizeShortestEdge',
        max_size=2560),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# A detector that learns drawn shapes from scratch on a laptop's CPU: what `make demo` trains.
_base_ = './dino-4scale_defocus-mamba-base_8xb2-12e_coco.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/data/shapes.py')
data_root, classes, train_dataloader = __common.data_root, __common.classes, __common.train_dataloader
val_dataloader, test_dataloader = __common.val_dataloader, __common.test_dataloader
val_evaluator, test_evaluator = __common.val_evaluator, __common.test_evaluator
train_dataloader.update(
    batch_size=2,
    num_workers=0,  # a worker would take a processor from the model
    persistent_workers=False,
)

embed_dims = 128
model = dict(
    num_queries=60,
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0], pad_size_divisor=8),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, inner_dims=384, depth=6, dt_rank=12),
        patch_size=8,
        section_size=None,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.0,
        with_cp=False),
    neck=dict(in_channels=192, out_channels=embed_dims, start_level=2),  # strides 8, 16, 32, 64
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_points=2),
            ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=256))),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims),
            cross_attn_cfg=dict(embed_dims=embed_dims),
            ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=256))),
    positional_encoding=dict(num_feats=embed_dims // 2),
    # The boxes are learned before the classes: without more weight their gradients drown the others.
    bbox_head=dict(num_classes=len(classes), embed_dims=embed_dims, loss_cls=dict(loss_weight=4.0)),
    # Noised boxes teach boxes and classes before the queries find them.
    dn_cfg=dict(group_cfg=dict(num_dn_queries=80)),
    test_cfg=dict(max_per_img=50))

# From scratch, in a few thousand steps, the backbone is not to be trained more slowly than the head, and AdamW's second
# moment is not to average over a thousand of them.
optim_wrapper = dict(
    optimizer=dict(lr=8e-4, betas=(0.9, 0.99), fused=True),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=1.0),
            'reference_points': dict(lr_mult=1.0),
            'mixer.A_log': dict(lr_mult=1.0),
            'mixer.freq': dict(lr_mult=1.0),
            '.mixer.D': dict(lr_mult=1.0),
        }))

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=250),
    # A cosine spends the last quarter of the steps at rates too low to learn from.
    dict(type='PolyLR', power=1.0, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='CheckAnnotationsHook'),
    dict(type='DeformableAttentionHook'),
    dict(type='ThreadCountHook'),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(max_keep_ckpts=2))
auto_scale_lr = dict(base_batch_size=2)

# Rates of Mask2Former's own recipe, 1e-4 and the backbone by layer-wise decay below it.
_base_ = __import__('mmseg').__path__[0] + '/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['backbones.integrations.openmmlab', 'mmdet.models'], allow_failed_imports=False)

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/tap-512x512.py')
channels, model, default_hooks = __common.channels, __common.model, __common.default_hooks

# Layer-wise decay takes the place of the one rate for the backbone.
undecayed = dict(decay_mult=0.0)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        custom_keys=dict(query_embed=undecayed, query_feat=undecayed, level_embed=undecayed),
    ),
)
custom_hooks = [dict(type='CheckAnnotationsHook'), dict(type='DeformableAttentionHook')]

_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/mask2former.py')
custom_imports, custom_hooks, default_hooks = __common.custom_imports, __common.custom_hooks, __common.default_hooks
channels, undecayed, model, optim_wrapper = __common.channels, __common.undecayed, __common.model, __common.optim_wrapper

# The stock model and data on the simple feature pyramid; De-focus published no segmentation result.
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/mamba-base/rcnn.py')
custom_imports, custom_hooks, default_hooks = __common.custom_imports, __common.custom_hooks, __common.default_hooks
model, optim_wrapper = __common.model, __common.optim_wrapper

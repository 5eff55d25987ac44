_base_ = './mask-rcnn_defocus-mamba-base_8xb2-12e_coco.py'

__common = __import__('mmengine').Config.fromfile('{{ fileDirname }}/../common/schedules/lsj-36e.py')
image_size, max_epochs = __common.image_size, __common.max_epochs
model, train_pipeline, train_dataloader = __common.model, __common.train_pipeline, __common.train_dataloader
train_cfg, param_scheduler = __common.train_cfg, __common.param_scheduler

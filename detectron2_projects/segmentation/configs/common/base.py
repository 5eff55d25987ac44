# What the base models share: the backbone, ViTDet's optimiser, Detectron2's 3× schedule.
from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from backbones.adapters import SimpleFPN
from backbones.integrations.detectron2 import AdaptedBackbone, DefocusMamba, get_lr_decay_rate, get_optimizer_params

# Our own pyramid tells Detectron2 how to pad, which semantic maps need; its SimpleFeaturePyramid does not.
backbone = L(AdaptedBackbone)(
    net=L(DefocusMamba)(
        arch="base",
        section_size=224,  # the pre-training resolution
        rope_scale=20.0,  # about (1024 / 224)^2, the ratio of sequence lengths
        delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
        drop_path_rate=0.1,
        with_cp=True,
    ),
    adapter=SimpleFPN,
    out_channels=256,
    num_outs=4,
)
constants = model_zoo.get_config("common/data/constants.py").constants
pixels = dict(
    pixel_mean=constants.imagenet_rgb256_mean,
    pixel_std=constants.imagenet_rgb256_std,
)

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "defocus:defocus_mamba_base_cls.pth"
train.amp.enabled = True
train.max_iter = 270000
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_3x

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params._target_ = get_optimizer_params
optimizer.params.lr_factor_func = partial(get_lr_decay_rate, lr_decay_rate=0.8, num_layers=24)

# The published recipe (arXiv 2406.04342): released result 50.2 box AP on COCO val2017, under mmdet.
import copy

from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid
from detrex.config import get_config
from projects.dino.configs.models import dino_r50

from backbones.integrations.detectron2 import DefocusMamba
from backbones.integrations.detrex import MapList, get_dino_lr_factor, with_reference_head
from backbones.layers.norms import LayerNorm2d

# A copy, because Python keeps the imported one for the next config.
model = copy.deepcopy(dino_r50.model)
model.backbone = L(SimpleFeaturePyramid)(
    net=L(DefocusMamba)(
        arch="base",
        section_size=224,  # the pre-training resolution
        rope_scale=20.0,  # about (1024 / 224)^2, the ratio of sequence lengths
        delta_scale=4.57,  # 1024 / 224, the ratio of resolutions
        drop_path_rate=0.5,
        with_cp=True,
        size_divisibility=0,  # as under mmdet
    ),
    in_feature="last_feat",
    out_channels=256,
    scale_factors=(4.0, 2.0, 1.0, 0.5),
    norm=LayerNorm2d,  # of the released pyramid; Detectron2's "LN" has another epsilon
)
# The pyramid is the neck.
model.neck = L(MapList)(in_features=["p2", "p3", "p4", "p5"])
# mmdet's positions, which the released detectors were trained with.
model.position_embedding.update(temperature=20, offset=0.0)
model.transformer.decoder = L(with_reference_head)(decoder=model.transformer.decoder)
model.transformer.decoder.decoder.num_feature_levels = "${...num_feature_levels}"

dataloader = get_config("common/data/coco_detr.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep

train = get_config("common/train.py").train
train.output_dir = "work_dirs/dino_defocus_mamba_base_4scale_12ep"
train.init_checkpoint = "defocus:defocus_mamba_base_cls.pth"
# 7500 iterations of 16 images an epoch, as detrex counts
train.max_iter = 90000
train.clip_grad.enabled = True
train.clip_grad.params.update(max_norm=0.1, norm_type=2)
model.device = "${train.device}"

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 2e-4
optimizer.weight_decay = 1e-4
optimizer.params.update(
    weight_decay_norm=None,
    lr_factor_func=get_dino_lr_factor,
    overrides={name: {"weight_decay": 0.0} for name in ("A_log", "D", "freq")},
)
dataloader.evaluator.output_dir = "${train.output_dir}"

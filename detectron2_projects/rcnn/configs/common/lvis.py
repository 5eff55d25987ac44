# What LVIS changes in any R-CNN: rare classes are sampled more often, and losses take part of the absent classes.
from functools import partial

from detectron2.config import LazyCall as L
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator

num_classes = 1203


def use_lvis(dataloader, model, train, lr_multiplier):
    dataloader.train.dataset.names = "lvis_v1_train"
    dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
        )
    )
    dataloader.test.dataset.names = "lvis_v1_val"
    dataloader.evaluator = L(LVISEvaluator)(
        dataset_name="${..test.dataset.names}", max_dets_per_image=300, output_dir="${train.output_dir}/inference"
    )

    heads = model.roi_heads
    heads.num_classes = num_classes
    for predictor in heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]:
        predictor.update(
            test_score_thresh=0.02,
            test_topk_per_image=300,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            get_fed_loss_cls_weights=partial(get_fed_loss_cls_weights, "lvis_v1_train", 0.5),
        )

    # 100 epochs = 156250 iterations × 64 images / 100000 images an epoch
    train.max_iter = 156250
    train.eval_period = 30000
    lr_multiplier.scheduler.milestones = [138889, 150463]
    lr_multiplier.warmup_length = 250 / train.max_iter

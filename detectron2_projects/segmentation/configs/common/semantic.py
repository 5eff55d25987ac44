# COCO-stuff as Detectron2 has it: 53 kinds of stuff, and all things as one.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.evaluation import SemSegEvaluator

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.update(names="coco_2017_train_panoptic_stuffonly", filter_empty=False)
dataloader.train.mapper.update(image_format="RGB", use_instance_mask=False)
dataloader.test.dataset.names = "coco_2017_val_panoptic_stuffonly"
dataloader.evaluator = L(SemSegEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
)

# Any data in COCO's format: `data.root` is the one setting; the rest says how the files below it are called.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from backbones.integrations.detectron2 import count_categories, register_coco_json

data = dict(
    root="data/coco_json",
    train_json="${data.root}/annotations/train.json",
    train_images="${data.root}/train",
    test_json="${data.root}/annotations/val.json",
    test_images="${data.root}/val",
    num_classes=L(count_categories)(json_file="${data.train_json}"),
)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = L(register_coco_json)(
    json_file="${data.train_json}", image_root="${data.train_images}"
)
dataloader.test.dataset.names = L(register_coco_json)(json_file="${data.test_json}", image_root="${data.test_images}")
dataloader.evaluator.output_dir = "${train.output_dir}/inference"
dataloader.train.mapper.image_format = "RGB"

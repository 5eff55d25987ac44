# COCO with large-scale jitter (arXiv 2012.07177): resize by 0.1 to 2.0, then crop to 1024 × 1024.
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

side = 1024
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(
    augmentations=[
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=side, target_width=side),
        # What is smaller is padded by the model, with zeros after normalisation.
        L(T.FixedSizeCrop)(crop_size=(side, side), pad=False),
    ],
    image_format="RGB",
    recompute_boxes=True,  # from the cropped masks
)
# Where the results file is left.
dataloader.evaluator.output_dir = "${train.output_dir}/inference"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=side, max_size=side)]

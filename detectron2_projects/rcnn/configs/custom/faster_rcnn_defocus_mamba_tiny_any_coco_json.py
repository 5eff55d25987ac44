# A Faster R-CNN from scratch on any COCO json with boxes, small enough for a CPU: give data.root.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.coco_json import data, dataloader
from ..shapes.mask_rcnn_defocus_mamba_tiny import lr_multiplier, model, optimizer, train

side = 320
dataloader.train.mapper.update(
    augmentations=[
        L(T.ResizeShortestEdge)(short_edge_length=(208, 240, 272), max_size=side, sample_style="choice"),
        L(T.RandomFlip)(horizontal=True),
    ],
    use_instance_mask=False,
)
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=240, max_size=side)]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.num_workers = 1

# Boxes alone
for _part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(_part)
model.roi_heads.batch_size_per_image = 64
model.proposal_generator.post_nms_topk = (200, 100)

train.output_dir = "work_dirs/faster_rcnn_defocus_mamba_tiny_any_coco_json"
train.max_iter = 250

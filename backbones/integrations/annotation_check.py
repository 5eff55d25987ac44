"""A look at annotations before mmdet or mmseg trains: a wrong one would else end in an error far from its cause."""

from io import BytesIO

import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Refuses to train where labels or masks do not fit their images or hold classes that the heads do not know.

    Reads images and annotations as the training pipeline does, before the first step: label maps of mmseg, instances
    (boxes, polygons, run lengths) and panoptic maps of mmdet.

    Args:
        samples: How many are read, evenly spread over the data set.
    """

    def __init__(self, samples: int = 32):
        self.samples = samples

    def before_train(self, runner) -> None:
        """Raises ValueError at the first annotation that is wrong; the message names the file and the cure."""
        dataset = _innermost(runner.train_dataloader.dataset)
        loaders = [t for t in dataset.pipeline.transforms if type(t).__name__.startswith("Load")]
        images = [loader for loader in loaders if "Image" in type(loader).__name__]
        annotations = [loader for loader in loaders if "Annotations" in type(loader).__name__]
        heads = [m for name, m in runner.model.named_modules() if hasattr(m, "num_classes") and "rpn_head" not in name]
        count = min(self.samples, len(dataset))
        for number in range(count):
            sample = dataset.get_data_info(number * len(dataset) // count)
            for loader in images:
                sample = loader(sample)
            if "instances" in sample:
                with_mask = any(getattr(loader, "with_mask", False) for loader in annotations)
                check_instances(sample, min(head.num_classes for head in heads), with_mask)
            if sample.get("segments_info"):
                path = sample["seg_map_path"]
                check_size(path, Image.open(BytesIO(get(path, annotations[0].backend_args))).size[::-1], sample)
                continue
            for loader in annotations:
                sample = loader(sample)
            if sample.get("gt_seg_map") is not None:
                head = next(head for head in heads if hasattr(head, "ignore_index"))
                check_label_map(sample, head.num_classes, head.ignore_index)


def check_size(path: str, size: tuple[int, int], sample: dict) -> None:
    """Raises ValueError if a label map's ``size``, (height, width), is not that of the loaded sample's image."""
    (h, w), (image_h, image_w) = size, sample["img"].shape[:2]
    if (h, w) != (image_h, image_w):
        raise ValueError(
            f"{path} is {w}×{h} pixels, its image {sample['img_path']} is {image_w}×{image_h}: "
            "each needs one label a pixel"
        )


def check_label_map(sample: dict, num_classes: int, ignore_index: int) -> None:
    """Raises ValueError if a loaded sample's label map is of another size than its image or holds unknown labels."""
    path, labels = sample["seg_map_path"], sample["gt_seg_map"]
    if labels.ndim != 2:
        raise ValueError(f"{path} has {labels.shape[-1]} channels: a label map has one, with a label in each pixel")
    check_size(path, labels.shape, sample)
    unknown = np.setdiff1d(labels, [*range(num_classes), ignore_index])
    if len(unknown):
        raise ValueError(
            f"{path} holds labels {unknown.tolist()}, the head knows 0 to {num_classes - 1} and ignores "
            f"{ignore_index}: set num_classes of all heads, ignore_index of all heads (and of the evaluators), or "
            "reduce_zero_label of the data set"
        )


def check_instances(sample: dict, num_classes: int, with_mask: bool) -> None:
    """Raises ValueError if a sample whose image is loaded has instances that do not fit it.

    Args:
        sample: What mmdet's data sets give, and ``img``.
        num_classes: Classes of the heads.
        with_mask: Whether each instance needs a mask.
    """
    path = sample["img_path"]
    height, width = sample["img"].shape[:2]
    said = (sample.get("height", height), sample.get("width", width))
    if said != (height, width):
        raise ValueError(
            f"{path} is {width}×{height} pixels, its annotations were made for {said[1]}×{said[0]}: correct the image, "
            "or its height, width and annotations"
        )
    for instance in sample["instances"]:
        if instance["bbox_label"] >= num_classes:
            raise ValueError(
                f"{path} has an instance of class {instance['bbox_label']}, the heads know 0 to {num_classes - 1}: set "
                "num_classes of all heads to the number of the data set's classes"
            )
        mask = instance.get("mask")
        if with_mask and not mask and not instance["ignore_flag"]:
            raise ValueError(
                f"{path} has an instance with a box and no mask: leave such out of the annotations, or train a "
                "detector of boxes alone"
            )
        if isinstance(mask, dict) and tuple(mask["size"]) != (height, width):
            raise ValueError(
                f"{path} is {width}×{height} pixels, one of its masks {mask['size'][1]}×{mask['size'][0]}: run lengths "
                "are over the image's own pixels"
            )


def _innermost(dataset):
    """The data set that has the pipeline, within wrappers that repeat, mix or join data sets."""
    while hasattr(dataset, "dataset") or hasattr(dataset, "datasets"):
        dataset = dataset.datasets[0] if hasattr(dataset, "datasets") else dataset.dataset
    return dataset

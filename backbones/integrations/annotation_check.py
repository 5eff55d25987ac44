"""A look at annotations before mmdet or mmseg trains: a wrong one would else end in an error far from its cause."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from PIL import Image
from torch import nn


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Refuses to train where labels or masks do not fit their images or hold classes that the heads do not know.

    Looks at every data set that wrappers join, repeat or mix, before the first step. What the data set itself says
    (classes of instances and segments, masks that are missing, sizes of run lengths) is checked for each of its images.
    Images, label maps of mmseg and panoptic maps of mmdet are read, as the training pipeline does, for some of them.

    Args:
        samples: Of how many images of each data set the files are read, evenly spread over it.
    """

    def __init__(self, samples: int = 32):
        self.samples = samples

    def before_train(self, runner) -> None:
        """Raises ValueError at the first annotation that is wrong; the message names the file and the cure."""
        known = known_classes(runner.model)
        checked = read = 0
        for dataset in _parts(runner.train_dataloader.dataset):
            if not (hasattr(dataset, "get_data_info") and hasattr(dataset, "pipeline")):
                print_log(f"Annotations of {type(dataset).__name__} are not checked: mmengine's alone are", "current")
                continue
            loaders = [t for t in dataset.pipeline.transforms if type(t).__name__.startswith("Load")]
            images = [loader for loader in loaders if "Image" in type(loader).__name__]
            annotations = [loader for loader in loaders if "Annotations" in type(loader).__name__]
            with_mask = any(getattr(loader, "with_mask", False) for loader in annotations)
            for number in range(len(dataset)):
                check_record(dataset.get_data_info(number), known, with_mask)
            count = min(self.samples, len(dataset))
            for number in range(count):
                sample = dataset.get_data_info(number * len(dataset) // count)
                for loader in images:
                    sample = loader(sample)
                check_image(sample)
                if sample.get("segments_info"):
                    path = sample["seg_map_path"]
                    check_size(path, Image.open(BytesIO(get(path, annotations[0].backend_args))).size[::-1], sample)
                    continue
                for loader in annotations:
                    sample = loader(sample)
                if sample.get("gt_seg_map") is not None:
                    check_label_map(sample, known.labels)
            checked, read = checked + len(dataset), read + count
        print_log(f"Annotations of {checked} images fit; the files of {read} of them were read", "current")


@dataclass(frozen=True)
class KnownClasses:
    """The classes that the heads of a model know, None where no head tells.

    Attributes:
        instances: How many of instances, labelled from 0.
        segments: How many of panoptic segments, things and stuff, labelled from 0.
        labels: How many of pixels, labelled from 0, and the label that is ignored.
    """

    instances: int | None = None
    segments: int | None = None
    labels: tuple[int, int] | None = None


def known_classes(model: nn.Module) -> KnownClasses:
    """Reads from the heads of a detector of mmdet or a segmentor of mmseg which classes they know."""
    heads = []
    for name, module in model.named_modules():
        parts = set(name.split("."))
        # A classifier as backbone counts classes of its own.
        if any("head" in part for part in parts) and "backbone" not in parts and hasattr(module, "num_classes"):
            heads.append((parts, module))
    # Proposals and masks for any class know none; what a detector's semantic head knows are not instances.
    instances = [
        head.num_classes
        for parts, head in heads
        if not parts & {"rpn_head", "semantic_head"}
        and "RPN" not in type(head).__name__
        and not getattr(head, "class_agnostic", False)
    ]
    segments = [h.num_things_classes + h.num_stuff_classes for _, h in heads if hasattr(h, "num_things_classes")]
    labels = [(head.num_classes, head.ignore_index) for _, head in heads if hasattr(head, "ignore_index")]
    return KnownClasses(min(instances, default=None), min(segments, default=None), labels[0] if labels else None)


def check_record(record: dict, known: KnownClasses, with_mask: bool) -> None:
    """Raises ValueError if what a data set says of an image is wrong by itself; reads no file.

    Args:
        record: What ``get_data_info`` of mmdet's and mmseg's data sets gives.
        known: Classes of the heads.
        with_mask: Whether the pipeline loads a mask for each instance.
    """
    path = record["img_path"]
    for instance in record.get("instances", ()):
        ignored, label = instance.get("ignore_flag", 0), instance["bbox_label"]
        if known.instances is not None and not ignored and not 0 <= label < known.instances:
            raise ValueError(
                f"{path} has an instance of class {label}, the heads know 0 to {known.instances - 1}: set "
                "num_classes of all heads to the number of the data set's classes"
            )
        # mmdet reads the key of ignored instances too; panoptic masks come from the map.
        lacks_mask = "mask" not in instance or (not instance["mask"] and not ignored)
        if with_mask and lacks_mask and "segments_info" not in record:
            raise ValueError(
                f"{path} has an instance with a box and no mask: leave such out of the annotations, or train a "
                "detector of boxes alone"
            )
    if "height" in record:
        _check_run_lengths(record, record["height"], record["width"])
    for segment in record.get("segments_info", ()):
        if known.segments is not None and not 0 <= segment["category"] < known.segments:
            raise ValueError(
                f"{record['seg_map_path']} has a segment of class {segment['category']}, the heads know 0 to "
                f"{known.segments - 1}: set num_things_classes and num_stuff_classes of all heads"
            )


def check_image(sample: dict) -> None:
    """Raises ValueError if the image of a sample, `(h, w, 3)` at ``img``, has another size than its annotations."""
    path = sample["img_path"]
    height, width = sample["img"].shape[:2]
    said = (sample.get("height", height), sample.get("width", width))
    if said != (height, width):
        raise ValueError(
            f"{path} is {width}×{height} pixels, its annotations were made for {said[1]}×{said[0]}: correct the image, "
            "or its height, width and annotations"
        )
    _check_run_lengths(sample, height, width)


def check_size(path: str, size: tuple[int, int], sample: dict) -> None:
    """Raises ValueError if a label map's ``size``, (height, width), is not that of the loaded sample's image."""
    (h, w), (image_h, image_w) = size, sample["img"].shape[:2]
    if (h, w) != (image_h, image_w):
        raise ValueError(
            f"{path} is {w}×{h} pixels, its image {sample['img_path']} is {image_w}×{image_h}: "
            "each needs one label a pixel"
        )


def check_label_map(sample: dict, known: tuple[int, int] | None) -> None:
    """Raises ValueError if a loaded sample's label map is of another size than its image or holds unknown labels.

    Args:
        sample: What the pipeline loaded, with the map, `(h, w)`, at ``gt_seg_map``.
        known: The head's number of classes and the label that it ignores; None checks the size alone.
    """
    path, labels = sample["seg_map_path"], sample["gt_seg_map"]
    if labels.ndim != 2:
        raise ValueError(f"{path} has {labels.shape[-1]} channels: a label map has one, with a label in each pixel")
    check_size(path, labels.shape, sample)
    if known is None:
        return
    num_classes, ignore_index = known
    unknown = np.setdiff1d(labels, [*range(num_classes), ignore_index])
    if len(unknown):
        raise ValueError(
            f"{path} holds labels {unknown.tolist()}, the head knows 0 to {num_classes - 1} and ignores "
            f"{ignore_index}: set num_classes of all heads, ignore_index of all heads (and of the evaluators), or "
            "reduce_zero_label of the data set"
        )


def _check_run_lengths(sample: dict, height: int, width: int) -> None:
    for instance in sample.get("instances", ()):
        mask = instance.get("mask")
        size = tuple(mask.get("size", ())) if isinstance(mask, dict) else ()
        if size and size != (height, width):
            raise ValueError(
                f"{sample['img_path']} is {width}×{height} pixels, one of its masks {size[1]}×{size[0]}: run lengths "
                "are over the image's own pixels"
            )


def _parts(dataset) -> Iterator:
    """The data sets within wrappers that join, repeat or mix them."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from _parts(part)
    elif hasattr(dataset, "dataset"):
        yield from _parts(dataset.dataset)
    else:
        yield dataset

"""A look at label maps before mmseg trains on them: a wrong one would else end in an error far from its cause."""

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Refuses to train where a label map does not fit its image or holds labels that the head does not know.

    Reads images and label maps as the training pipeline does, before the first step.

    Args:
        samples: How many are read, evenly spread over the data set.
    """

    def __init__(self, samples: int = 32):
        self.samples = samples

    def before_train(self, runner) -> None:
        """Raises ValueError at the first label map that is wrong; the message names the file and the cure."""
        dataset = runner.train_dataloader.dataset
        loaders = [t for t in _transforms(dataset) if type(t).__name__.startswith("Load")]
        head = next(m for m in runner.model.modules() if hasattr(m, "num_classes") and hasattr(m, "ignore_index"))
        count = min(self.samples, len(dataset))
        for number in range(count):
            sample = dataset.get_data_info(number * len(dataset) // count)
            for loader in loaders:
                sample = loader(sample)
            check_label_map(sample, head.num_classes, head.ignore_index)


def check_label_map(sample: dict, num_classes: int, ignore_index: int) -> None:
    """Raises ValueError if a loaded sample's label map is of another size than its image or holds unknown labels."""
    path, labels = sample["seg_map_path"], sample["gt_seg_map"]
    if labels.shape != sample["img"].shape[:2]:
        (h, w), (image_h, image_w) = labels.shape[:2], sample["img"].shape[:2]
        raise ValueError(
            f"{path} is {w}×{h} pixels, its image {sample['img_path']} is {image_w}×{image_h}: "
            "each needs one label a pixel, in one channel"
        )
    unknown = np.setdiff1d(labels, [*range(num_classes), ignore_index])
    if len(unknown):
        raise ValueError(
            f"{path} holds labels {unknown.tolist()}, the head knows 0 to {num_classes - 1} and ignores "
            f"{ignore_index}: set num_classes of all heads, ignore_index of all heads (and of the evaluators), or "
            "reduce_zero_label of the data set"
        )


def _transforms(dataset) -> list:
    """The transforms of a data set's pipeline, through wrappers that repeat or join data sets."""
    while not hasattr(dataset, "pipeline"):
        dataset = dataset.datasets[0] if hasattr(dataset, "datasets") else dataset.dataset
    return dataset.pipeline.transforms

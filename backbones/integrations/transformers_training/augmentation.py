"""What is changed in training images by chance: torchvision's transforms, together with boxes, masks and label maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

# What each does, for the user who names one.
AUGMENTATIONS = {
    "none": "nothing",
    "flip": "mirrors half of the images",
    "crop": "changes colours, zooms out, crops around objects, and mirrors, as RT-DETR does; for boxes",
    "jitter": "scales by 0.5 to 2, crops and pads to the size of training, and mirrors; for masks and label maps",
}


def build_augmentation(name: str, size: tuple[int, int], padding_label: int) -> v2.Transform | None:
    """The transform that a name of `AUGMENTATIONS` stands for; None for "none".

    Args:
        name: Which.
        size: (height, width) of training.
        padding_label: What masks and label maps show where an image is padded.

    Raises:
        ValueError: There is no augmentation of that name.
    """
    flip = v2.RandomHorizontalFlip()
    if name == "none":
        return None
    if name == "flip":
        return flip
    if name == "crop":
        zoom = v2.RandomApply([v2.RandomZoomOut(side_range=(1.0, 2.0), p=1.0)], p=0.5)
        return v2.Compose([v2.RandomPhotometricDistort(), zoom, v2.RandomIoUCrop(), flip])
    if name == "jitter":
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: padding_label}
        crop = v2.RandomCrop(size, pad_if_needed=True, fill=fill)
        return v2.Compose([v2.ScaleJitter(size, scale_range=(0.5, 2.0)), crop, flip])
    raise ValueError(f"there is no augmentation {name!r}; name one of {', '.join(AUGMENTATIONS)}")


@contextlib.contextmanager
def drawn_for(*place: int) -> Iterator[None]:
    """Random numbers of torch that depend on ``place`` alone; those of the process go on afterwards as if without.

    What an image is changed to then depends neither on the number of processes and workers nor on where a run was
    resumed.
    """
    state = torch.get_rng_state()
    # torch.manual_seed would look for accelerators each time.
    torch.default_generator.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
    try:
        yield
    finally:
        torch.set_rng_state(state)

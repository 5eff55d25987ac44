"""What makes images of files into what a model takes, as a folder keeps it in ``preprocessor_config.json``."""

from collections.abc import Sequence

from transformers import BitImageProcessor

from backbones.integrations.networks import MEAN, STD

# The share of an image's shorter side that the released classifiers look at.
CROP = 0.9
# How PIL counts bicubic interpolation.
BICUBIC = 3


def image_processor(size: int | None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> BitImageProcessor:
    """An image processor of transformers.

    Args:
        size: Side of a classifier's square images, cut from the middle of one whose shorter side is a tenth longer;
            None leaves images of any size as they are, as backbones take them.
        mean: Of each channel, of pixels from 0 to 255.
        std: The same.
    """
    side = size or 1
    return BitImageProcessor(
        do_resize=size is not None,
        do_center_crop=size is not None,
        size={"shortest_edge": int(side / CROP)},
        crop_size={"height": side, "width": side},
        resample=BICUBIC,
        image_mean=[round(value / 255, 6) for value in mean],
        image_std=[round(value / 255, 6) for value in std],
    )

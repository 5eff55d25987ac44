"""How a backbone pre-trained at one resolution is used at another."""

from collections.abc import Sequence
from typing import TypedDict


class ResolutionSettings(TypedDict):
    """The arguments of `DefocusBackbone` that follow from the resolutions of use and pre-training."""

    section_size: int | None
    rope_scale: float
    delta_scale: float


def resolution_settings(use: int | Sequence[int], pretrained: int, sections: bool = True) -> ResolutionSettings:
    """Arguments that carry a checkpoint to images of another size.

    With r, the square root of the ratio of the areas, the decay's distances shrink by r (``delta_scale``), the
    phase's positions by the ratio of the sequence lengths, r² (``rope_scale``), and each section of the 2D-section
    scan is an image as pre-training saw it. The released detectors' 20.0 and 7.13 differ from r² = 20.9 and 7.11.

    Args:
        use: Side, or (height, width), in pixels of the images or crops that the model is trained on. Where they vary,
            the typical one: 1024 for the multi-scale training of COCO.
        pretrained: Side of the images that the checkpoint was last trained on: 224 for the released base, 384 for the
            released large one.
        sections: False for plain row order, as in classification.

    Returns:
        Keyword arguments: ``DefocusMamba("base", **resolution_settings(1024, 224))``.

    Raises:
        ValueError: A side is not positive.
    """
    height, width = (use, use) if isinstance(use, int) else use
    if min(height, width, pretrained) <= 0:
        raise ValueError(f"sides must be positive, got use={use}, pretrained={pretrained}")
    length_ratio = height * width / pretrained**2
    same = height == width == pretrained
    return ResolutionSettings(
        section_size=None if same or not sections else pretrained,
        rope_scale=length_ratio,
        delta_scale=length_ratio**0.5,
    )

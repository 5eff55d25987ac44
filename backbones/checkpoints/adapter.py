"""The adapter in a checkpoint, and the arguments that its weights tell."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backbones.checkpoints.convert import find_backbones
from backbones.checkpoints.layouts import levels_in_mmdet, to_mmdet
from backbones.checkpoints.read import CheckpointError

# Where mmdet has an adapter that is a neck.
_NECK = "neck."


def adapter_from_checkpoint(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The adapter of ours in the weights of a detector, segmentor or adapted backbone of any framework.

    Args:
        weights: Name to tensor, with one backbone.

    Returns:
        Its own names to tensors, and its ``type`` and arguments as far as weights tell them; none and None where there
        is none. What has no weights is not told: outputs beyond stride 32, and how an `InteractionAdapter` divides its
        attention into heads and points, for which its defaults are taken.

    Raises:
        CheckpointError: There is a pyramid that cannot be told.
    """
    if any(re.search(r"(?:^|\.)simfp_\d", name) for name in weights):
        weights, _ = to_mmdet(weights)
    (prefix,) = find_backbones(weights)
    for before in (prefix.removesuffix("net.") + "adapter.", _NECK):
        own = {name.removeprefix(before): value for name, value in weights.items() if name.startswith(before)}
        if "lateral_convs.0.norm_layer.weight" in own:
            return own, _simple_fpn(own)
        if "norms.0.weight" in own and "injectors.0.gate" not in own:
            return own, _tap_pyramid(own)
        if "injectors.0.gate" in own:
            return own, _interaction(own)
    return {}, None


def _simple_fpn(own: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = levels_in_mmdet(_NECK + name for name in own)
    return dict(
        type="SimpleFPN",
        out_channels=own["lateral_convs.0.conv.weight"].shape[0],
        num_outs=len(levels),
        start_level=levels[0],
    )


def _tap_pyramid(own: Mapping[str, Tensor]) -> dict[str, Any]:
    taps = _count(own, "norms")
    convolution = own.get("projections.0.0.conv.weight")
    channels = None if convolution is None else convolution.shape[0]
    return dict(type="TapPyramid", out_channels=channels, num_outs=taps, start_level=4 - taps)


def _interaction(own: Mapping[str, Tensor]) -> dict[str, Any]:
    outs, width = _count(own, "norms"), own["level_embed"].shape[1]
    convolution = own.get("projections.0.0.conv.weight")
    return dict(
        type="InteractionAdapter",
        out_channels=None if convolution is None else convolution.shape[0],
        num_outs=outs,
        start_level=0 if "finest.weight" in own else 4 - outs,
        num_groups=_count(own, "injectors"),
        prior_dims=own["prior.stages.0.0.0.weight"].shape[0],
        value_ratio=own["injectors.0.attention.value_proj.weight"].shape[0] / width,
        ffn_ratio=own["extractors.0.fc1.weight"].shape[0] / width,
    )


def _count(own: Mapping[str, Tensor], module: str) -> int:
    numbers = {int(match[1]) for name in own if (match := re.match(rf"{module}\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(f"the adapter's {module} are {sorted(numbers)}, not one after the other: it is damaged")
    return len(numbers)

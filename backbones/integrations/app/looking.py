"""An image through a network: what it finds, and the maps of where it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from backbones.analysis import cut, map_layers, measure, measuring
from backbones.analysis.drawing import pictures
from backbones.analysis.figures import Named
from backbones.analysis.maps import layer_runs
from backbones.defocus import DefocusBackbone
from backbones.integrations.app.predictions import Opened, Prediction, to_pixels

# What a user reads to the picture of `defocus maps` that it stands for.
RECIPES = {
    "pixels that three tokens hang on": "erf.png",
    "attention of three tokens": "attention.png",
    "receptive field of the class token": "receptive_field.png",
    "gradient": "gradient.png",
    "features": "features.png",
    "scan order": "scan_order.png",
    "maps in scan order": "in_scan_order.png",
}


@dataclass(frozen=True)
class Look:
    """A network that has seen an image.

    Attributes:
        name: Of the network.
        pixels: The image, `(h, w, 3)` uint8.
        prediction: What it found.
        net: Its De-focus backbone; None if it has none.
        seen: What that backbone was given, `(1, 3, H, W)`.
        picture: The same as pixels, `(H, W, 3)` uint8.
        measured: Layer to its maps, filled as they are asked for.
    """

    name: str
    pixels: np.ndarray
    prediction: Prediction
    net: DefocusBackbone | None
    seen: Tensor | None
    picture: np.ndarray | None
    measured: dict[int, Named] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers that have maps."""
        return 0 if self.net is None else self.net.out_indices[-1] + 1


def look(name: str, opened: Opened, pixels: np.ndarray) -> Look:
    """Runs a network on an image, `(h, w, 3)` uint8.

    Raises:
        ValueError: The network does not give what can be shown.
    """
    net = next((module for module in opened.model.modules() if isinstance(module, DefocusBackbone)), None)
    if net is None:
        return Look(name, pixels, opened.predict(pixels), None, None, None)
    given: list[Tensor] = []

    # Whatever a framework does to an image, this is what it ends in.
    def note(_: nn.Module, arguments: tuple) -> None:
        given.append(arguments[0].detach().float().clone())

    hook = net.patch_embed.register_forward_pre_hook(note)
    try:
        prediction = opened.predict(pixels)
    finally:
        hook.remove()
    # A test pipeline that looks at several crops or sizes shows the maps of its first.
    seen = given[0][:1]
    mean, std = (seen.new_tensor(list(values))[:, None, None] for values in (opened.mean, opened.std))
    picture = (seen[0] * std + mean).clamp(0, 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Look(name, pixels, prediction, net, seen, picture if opened.red_first else picture[..., ::-1].copy())


def map_runs(looked: Look, layer: int) -> int:
    """How often a layer is run for the maps of ``layer``; 0 where they are measured."""
    return 0 if layer in looked.measured or not looked.depth else layer_runs(looked.depth, [layer])


def draw_maps(looked: Look, recipe: str, layer: int, tick: Callable[[], object] = lambda: None) -> np.ndarray:
    """The picture of `defocus maps` of one layer, `(h, w, 3)` uint8.

    Args:
        looked: What has been seen.
        recipe: One of `RECIPES`.
        layer: Counted from 0.
        tick: Called at each of `map_runs`.

    Raises:
        ValueError: The network has no such maps, or no such layer.
    """
    if looked.net is None:
        raise ValueError(f"{looked.name} has no De-focus backbone, whose layers the maps are of: its boxes are all")
    map_layers(looked.depth, [layer])
    if layer not in looked.measured:
        with measuring(looked.net):
            network = cut(looked.net, looked.seen)
            maps = measure(network, looked.seen, layers=[layer], erf_layers=[layer], tick=tick)
        looked.measured[layer] = Named(Path(looked.name).name, looked.picture, maps)
    figure = pictures([looked.measured[layer]])[RECIPES[recipe]]()
    if figure is None:
        raise ValueError(f"{looked.name} has no class token, and so no receptive field of one: take another map")
    return to_pixels(figure)

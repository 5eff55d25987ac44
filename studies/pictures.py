"""The study's pictures: maps of networks side by side, as in the paper's figure, and the accuracy of each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defocus_eval.files import replacing

ROWS = dict(attention="attention map", receptive_field="class token's\nreceptive field", gradient="gradient map")


def draw_maps(image: np.ndarray, networks: Mapping[str, dict[str, np.ndarray]], layer: str) -> Figure:
    """A column a network, a row a map, and the image.

    Args:
        image: `(side, side, 3)` uint8.
        networks: Maps, as of `measures.maps`, by title.
        layer: In words.
    """
    columns = len(networks)
    figure = Figure((1.55 * columns + 1.6, 5.2), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ROWS), columns + 1)
    for row, (name, words) in enumerate(ROWS.items()):
        for place in axes[row]:
            place.set(xticks=[], yticks=[])
        for place, (title, found) in zip(axes[row, 1:], networks.items()):
            if name == "attention":
                place.imshow(found[name], cmap="viridis", vmin=0, vmax=1)
            else:
                _draw_on(place, image, found[name])
            if row == 0:
                place.set_title(title, fontsize=8.5)
        axes[row, 1].set_ylabel(words, fontsize=8.5)
        axes[row, 0].axis("off")
    axes[1, 0].imshow(image)
    axes[1, 0].set_title("image", fontsize=8.5)
    figure.suptitle(f"{layer}; each map divided by its maximum", fontsize=9)
    return figure


def _draw_on(axes, image: np.ndarray, values: np.ndarray) -> None:
    """A map on the grey image, which shows where the map is low."""
    grey = image.mean(-1)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    height, width = grey.shape
    axes.imshow(values, cmap="inferno", alpha=0.65, vmin=0, vmax=1, extent=(-0.5, width - 0.5, height - 0.5, -0.5))


def draw_accuracies(rows: Mapping[str, Sequence[float]], chance: float) -> Figure:
    """Each seed's accuracy as a dot, a row a network.

    Args:
        rows: Percent by title.
        chance: Percent of a guess.
    """
    figure = Figure((6.4, 0.27 * len(rows) + 0.9), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        axes.plot(values, [place] * len(values), "o", markersize=5, alpha=0.75, color="tab:blue")
        axes.plot(np.mean(values), place, "|", markersize=13, color="black")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(chance, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlabel("test accuracy, %; a dot a seed, | their mean, dashed: chance", fontsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG or JPEG, as the name says, whole or not at all."""
    kind = path.suffix.removeprefix(".")
    with replacing(path) as file:
        figure.savefig(file, format=kind, pil_kwargs={"quality": 88} if kind == "jpg" else {})

"""Pictures of what a network reads in which order, and of its maps in that order."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from backbones.analysis.figures import HEAT, TITLE, Named, bare, drawn_part, new_figure
from backbones.analysis.models import Layout

# Points that a row of a picture can show: more, and single peaks fall between them.
LONGEST_STRIP, LONGEST_MATRIX = 700, 130


def draw_scan_order(picture: np.ndarray, layout: Layout) -> Figure:
    """The order in which the tokens are read, as a line over the image from its first token to its last."""
    height, width = picture.shape[:2]
    figure = new_figure(5.2, 5.2 * min(max(height / width, 0.4), 2.0) * 0.86)
    axes = figure.subplots()
    bare(axes)
    axes.imshow(picture, extent=(0, width, height, 0), alpha=0.45)
    points = layout.positions[:, ::-1]
    steps = np.stack((points[:-1], points[1:]), axis=1)
    # What is no step to a neighbour is a jump, to the next line or the next section.
    jumps = np.abs(np.diff(points, axis=0)).max(-1) > 1.5 * layout.stride
    where = np.linspace(0, 1, len(steps))
    colors = matplotlib.colormaps["turbo"](where)
    thick = min(2.5, 120 / max(layout.rows, layout.columns))
    axes.add_collection(LineCollection(steps[jumps], colors=colors[jumps], linewidths=thick / 4, alpha=0.6))
    axes.add_collection(LineCollection(steps[~jumps], colors=colors[~jumps], linewidths=thick))
    for point, word, marker in ((points[0], "first", "o"), (points[-1], "last", "s")):
        axes.scatter(
            point[0],
            point[1],
            s=36,
            marker=marker,
            color="white",
            edgecolors="black",
            zorder=3,
            label=word,
            clip_on=False,
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(1, len(points)), "turbo"), ax=axes, shrink=0.8, aspect=30, ticks=[1, len(points)]
    )
    bar.set_label("token, as it is read", fontsize=8)
    axes.set_title(f"Scan order: {layout.rows} × {layout.columns} tokens on the image", fontsize=9.5, loc="left")
    return figure


def draw_in_scan_order(item: Named) -> Figure:
    """Maps as the network reads them: layers over positions, and the drawn layers' queries over keys.

    The first needs a class token for what it looks at; without one the gradient stands alone.
    """
    layers, drawn = item.maps.layers, [item.maps.layers[index] for index in item.maps.drawn]
    strips = {"gradient of the loss": [layer.gradient for layer in layers]}
    fields = [layer.receptive_field for layer in layers if layer.receptive_field is not None]
    if len(fields) == len(layers):
        strips = {"receptive field of the class token": fields, **strips}
    figure = new_figure(max(7.0, 2.0 * len(drawn)), 1.5 * len(strips) + 2.6)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.5 * len(strips), 2.4])
    for axes, (name, rows) in zip(np.ravel(parts[0].subplots(len(strips), 1)), strips.items(), strict=True):
        keys = layers[0].layer.before.image_tokens
        values = np.stack([_shrink(row[keys] / max(row[keys].max(), 1e-30), LONGEST_STRIP) for row in rows])
        axes.imshow(values, cmap=HEAT, aspect="auto", extent=(0, len(keys), len(rows), 0), interpolation="nearest")
        axes.set_title(name, loc="left", **TITLE)
        axes.set_ylabel("layer", fontsize=7.5)
        axes.set_yticks([0.5, len(rows) - 0.5], ["0", str(len(rows) - 1)])
        axes.tick_params(labelsize=7)
    for axes, found in zip(np.ravel(parts[1].subplots(1, len(drawn))), drawn, strict=True):
        keys = found.layer.before.image_tokens
        # Queries and keys count alike: the tokens on the image, without those of padding.
        queries = np.searchsorted(found.layer.after.image_tokens, found.queries)
        _draw_matrix(axes, drawn_part(found.attention)[:, keys], queries, len(queries) == len(keys))
        axes.set_title(found.layer.name, loc="left", **TITLE)
    figure.suptitle(f"{item.name}: in the order in which the tokens are read", fontsize=9.5, x=0.01, ha="left")
    return figure


def _draw_matrix(axes: Axes, weights: np.ndarray, queries: np.ndarray, every: bool) -> None:
    """Queries down, keys to the right; over the maximum of all, or of each row where they are a sample."""
    largest = weights.max() if every else weights.max(-1, keepdims=True)
    shown = weights / np.maximum(largest, 1e-30)
    shown = np.stack([_shrink(row, LONGEST_MATRIX) for row in shown])
    if every:
        shown = np.stack([_shrink(column, LONGEST_MATRIX) for column in shown.T], axis=1)
    axes.imshow(shown, cmap=HEAT, aspect="auto", interpolation="nearest", extent=(0, weights.shape[1], len(queries), 0))
    axes.set_xlabel("key", fontsize=7.5)
    axes.set_ylabel("query", fontsize=7.5)
    if not every:
        labelled = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), 10)).round().astype(int))
        axes.set_yticks(labelled + 0.5, [str(queries[row]) for row in labelled])
    axes.tick_params(labelsize=6.5)


def _shrink(values: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of them, each the largest of its stretch: single peaks are what is looked for."""
    if len(values) <= most:
        return values
    return np.maximum.reduceat(values, np.linspace(0, len(values), most, endpoint=False).astype(int))

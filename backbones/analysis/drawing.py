"""Pictures of maps with matplotlib, which only those who draw need."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from backbones.analysis.figures import HEAT, TITLE, Named, bare, drawn_part, new_figure
from backbones.analysis.models import Layout
from backbones.analysis.order_drawing import draw_in_scan_order, draw_scan_order

# A map's share of its pixels where it is 0 and where it is largest: the image must still be seen through it.
OPACITY = (0.2, 0.85)
PANEL = 1.9
# Letters of a row's name that a panel is tall enough for.
LETTERS = 30
# Of a title, as wide as its letters are on the average.
LETTERS_PER_INCH = 14


@dataclass(frozen=True)
class Panel:
    """One image with a map over it.

    Attributes:
        title: Above it.
        picture: `(h, w, 3)` uint8.
        values: `(rows, columns)` of weights, which are divided by their maximum, or `(rows, columns, 3)` of colours.
        stride: Side of a cell in pixels.
        mark: Row and column, in pixels, of a query.
    """

    title: str
    picture: np.ndarray
    values: np.ndarray
    stride: float
    mark: tuple[float, float] | None = None


def draw_receptive_fields(networks: Sequence[Named]) -> Figure | None:
    """What the class token looks at, a row a network, a column a layer; None where no network has one."""
    rows = []
    for item in networks:
        found = [item.maps.layers[index] for index in item.maps.drawn]
        panels = [
            _panel(item, layer.layer.name, layer.layer.before, layer.receptive_field[None])[0]
            for layer in found
            if layer.receptive_field is not None
        ]
        rows += [(item.name, panels)] if panels else []
    return _draw_panels(rows, "Receptive field of the class token, by layer") if rows else None


def draw_attention(networks: Sequence[Named]) -> Figure:
    """What the tokens at the query cells look at, a row a cell, a column a layer."""
    rows = []
    for item in networks:
        for cell in item.maps.cells:
            panels = []
            for index in item.maps.drawn:
                found = item.maps.layers[index]
                token = found.layer.after.token_at(*cell)
                row = np.searchsorted(found.queries, token)
                mark = _centre(found.layer.after, token)
                panels += _panel(item, found.layer.name, found.layer.before, drawn_part(found.attention)[[row]], mark)
            rows.append((f"{item.name}\nquery {cell[0]:g}, {cell[1]:g}", panels))
    return _draw_panels(rows, "What the marked token looks at, by layer (the token itself left out)")


def draw_gradients(networks: Sequence[Named]) -> Figure:
    """Where the gradient of the loss arrives, a row a network, a column a layer."""
    rows = []
    for item in networks:
        panels = []
        for index in item.maps.drawn:
            found = item.maps.layers[index]
            reach = (found.numbers["gradient"] or {}).get("of_last_layer")
            title = found.layer.name + ("" if reach is None else f", {reach:.3g}× the last")
            panels += _panel(item, title, found.layer.before, found.gradient[None])
        rows.append((item.name, panels))
    return _draw_panels(rows, "Gradient of the loss at the layer's input")


def draw_features(networks: Sequence[Named]) -> Figure:
    """Three principal components of each layer's tokens as red, green and blue, beside the image."""
    rows = []
    for item in networks:
        panels = [Panel("image", item.picture, item.picture, 1)]
        for index in item.maps.drawn:
            found = item.maps.layers[index]
            colors = stretch_colors(drawn_part(found.features))
            panels.append(Panel(found.layer.name, item.picture, colors, found.layer.after.stride))
        rows.append((item.name, panels))
    return _draw_panels(rows, "Principal components of the tokens after the layer")


def draw_erf(networks: Sequence[Named]) -> Figure:
    """The pixels that a layer's tokens at the query cells hang on, a row a layer, a column a cell."""
    rows = []
    for item in networks:
        for index, fields in item.maps.erf.items():
            layer, panels = item.maps.layers[index].layer, []
            for cell, field in zip(item.maps.cells, fields, strict=True):
                # As RepLKNet shows it: a logarithm, or single pixels are all that is seen.
                shown = np.log10(field + 1e-3 * field.max() + 1e-30)
                mark = _centre(layer.after, layer.after.token_at(*cell))
                panels.append(Panel(f"query {cell[0]:g}, {cell[1]:g}", item.picture, shown - shown.min(), 1, mark))
            rows.append((f"{item.name}\n{layer.name}", panels))
    return _draw_panels(rows, "Effective receptive field on the pixels", "three decades of a logarithm")


def stretch_colors(scores: np.ndarray) -> np.ndarray:
    """Scores `(…, 3)` as colours: of each component the 1st to the 99th percentile over 0 to 1."""
    low, high = np.percentile(scores.reshape(-1, scores.shape[-1]), [1, 99], axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)


def _centre(layout: Layout, token: int) -> tuple[float, float]:
    """Row and column, in pixels, of the middle of a token's cell."""
    row, column = layout.positions[np.searchsorted(layout.image_tokens, token)]
    return row, column


def _panel(
    item: Named, title: str, layout: Layout, weights: np.ndarray, mark: tuple[float, float] | None = None
) -> list[Panel]:
    return [Panel(title, item.picture, values, layout.stride, mark) for values in layout.to_map(weights)]


def _draw_panels(rows: Sequence[tuple[str, Sequence[Panel]]], title: str, unit: str = "of the map's maximum") -> Figure:
    columns = max(len(panels) for _, panels in rows)
    height, width = rows[0][1][0].picture.shape[:2]
    tall = min(max(height / width, 0.4), 2.0)
    wide = columns * PANEL + 0.9
    lines = textwrap.wrap(title, int(wide * LETTERS_PER_INCH))
    figure = new_figure(wide, len(rows) * (PANEL * tall + 0.25) + 0.2 + 0.15 * len(lines))
    all_axes = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, panels) in zip(all_axes, rows, strict=True):
        for axes in axes_row:
            bare(axes)
        labels = [line for part in name.split("\n") for line in textwrap.wrap(part, LETTERS)]
        axes_row[0].set_ylabel("\n".join(labels), fontsize=6.5)
        for axes, panel in zip(axes_row, panels):
            _draw_panel(axes, panel)
    figure.suptitle("\n".join(lines), fontsize=9.5, x=0.01, ha="left")
    if any(panel.values.ndim == 2 for _, panels in rows for panel in panels):
        # Beside the first rows: one bar as tall as the figure would be all that is seen of it.
        shrink = min(1.0, 2 / len(rows))
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), HEAT), ax=all_axes, aspect=25, pad=0.01, shrink=shrink, anchor=(0, 1)
        )
        bar.ax.tick_params(labelsize=7)
        bar.set_label(unit, fontsize=7)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    height, width = panel.picture.shape[:2]
    rows, columns = panel.values.shape[:2]
    extent = (0, columns * panel.stride, rows * panel.stride, 0)
    if panel.values.ndim == 3:
        axes.imshow(panel.values, extent=extent, interpolation="nearest")
    else:
        # Grey: the image's own colours would mix with those of the map.
        axes.imshow(panel.picture.mean(-1), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        weights = panel.values / max(panel.values.max(), 1e-30)
        # Few tokens have most of the weight: a root lets the others show through, too.
        opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * np.sqrt(weights)
        axes.imshow(np.dstack((HEAT(weights)[..., :3], opacity)), extent=extent, interpolation="nearest")
    if panel.mark is not None:
        row, column = panel.mark
        for size, color in ((90, "black"), (45, "#39ff6a")):
            axes.scatter(column, row, s=size, marker="+", color=color, linewidths=size / 30)
    # Cells of padding end outside of the image.
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_title(panel.title, **TITLE)


# What is drawn by layer: recipe, number, heading, logarithmic.
CURVES = (
    ("receptive_field", "effective_tokens", "class token: effective tokens", True),
    ("receptive_field", "top_share", "class token: share of the top 1 %", False),
    ("attention", "effective_share", "attention: effective share of the visible", False),
    ("attention", "top_share", "attention: share of the top 1 %", False),
    ("attention", "distance_patches", "attention: mean distance, patches", False),
    ("gradient", "of_last_layer", "gradient: of the last layer's", True),
)


def draw_numbers(networks: Sequence[Named]) -> Figure:
    """The numbers by layer, a line a network."""
    figure = new_figure(8.4, 4.6)
    unlike = len({len(item.maps.layers) for item in networks}) > 1
    for axes, (recipe, number, heading, logarithmic) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        for item in networks:
            layers = [layer.numbers[recipe] for layer in item.maps.layers]
            values = [np.nan if found is None or found[number] is None else found[number] for found in layers]
            steps = np.linspace(0, 1, len(values)) if unlike else np.arange(len(values))
            axes.plot(steps, values, marker=".", linewidth=1.5, label=item.name)
        if not unlike:
            axes.xaxis.get_major_locator().set_params(integer=True)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "has no meaning here", transform=axes.transAxes, ha="center", fontsize=8, color="gray")
            axes.set(xticks=[], yticks=[])
        elif logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:.3g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(heading, loc="left", **TITLE)
        axes.set_xlabel("depth, of the network's" if unlike else "layer", fontsize=7.5)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=7)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def pictures(networks: Sequence[Named]) -> dict[str, Callable[[], Figure | None]]:
    """File name to what draws it: those of all networks together, then of each alone (`-2` for the second)."""
    found: dict[str, Callable[[], Figure | None]] = {
        "receptive_field.png": lambda: draw_receptive_fields(networks),
        "attention.png": lambda: draw_attention(networks),
        "gradient.png": lambda: draw_gradients(networks),
        "features.png": lambda: draw_features(networks),
        "erf.png": lambda: draw_erf(networks),
        "numbers.png": lambda: draw_numbers(networks),
    }
    for number, item in enumerate(networks, 1):
        layout = item.maps.layers[0].layer.before
        # A network on grids reads in no order.
        if layout.ordered:
            ending = "" if number == 1 else f"-{number}"
            found[f"scan_order{ending}.png"] = partial(draw_scan_order, item.picture, layout)
            found[f"in_scan_order{ending}.png"] = partial(draw_in_scan_order, item)
    return found

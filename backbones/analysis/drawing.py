"""Pictures of maps with matplotlib, which only those who draw need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from backbones.analysis.maps import NetworkMaps
from backbones.analysis.models import Layout

DPI = 110
HEAT = matplotlib.colormaps["inferno"]
# A map's share of its pixels where it is 0 and where it is largest: the image must still be seen through it.
OPACITY = (0.2, 0.85)
# Points that a row of a picture can show: more, and single peaks fall between them.
LONGEST_STRIP, LONGEST_MATRIX = 700, 130
PANEL = 1.9
TITLE = {"fontsize": 8, "color": "#333333"}


@dataclass(frozen=True)
class Named:
    """What was found of a network, with its name and the image that it saw.

    Attributes:
        name: As in headings and legends.
        picture: `(h, w, 3)` uint8.
        maps: What was found.
    """

    name: str
    picture: np.ndarray
    maps: NetworkMaps


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
        fields = [layer for layer in found if layer.receptive_field is not None]
        panels = [
            _panel(item, layer.layer.name, layer.layer.before, layer.receptive_field[None])[0] for layer in fields
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
                panels += _panel(item, found.layer.name, found.layer.before, found.attention[[row]], mark)
            rows.append((f"{item.name}\nquery {cell[0]:g}, {cell[1]:g}", panels))
    return _draw_panels(rows, "What the marked token looks at, by layer (the token itself left out)")


def draw_gradients(networks: Sequence[Named]) -> Figure:
    """Where the gradient of the loss arrives, a row a network, a column a layer."""
    rows = []
    for item in networks:
        panels = []
        for index in item.maps.drawn:
            found = item.maps.layers[index]
            reach = found.numbers["gradient"]["of_last_layer"]
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
            panels.append(
                Panel(found.layer.name, item.picture, stretch_colors(found.features), found.layer.after.stride)
            )
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
    return [Panel(title, item.picture, grid, layout.stride, mark) for grid in layout.to_map(weights)]


def _draw_panels(rows: Sequence[tuple[str, Sequence[Panel]]], title: str, unit: str = "of the map's maximum") -> Figure:
    columns = max(len(panels) for _, panels in rows)
    height, width = rows[0][1][0].picture.shape[:2]
    tall = min(max(height / width, 0.4), 2.0)
    figure = new_figure(columns * PANEL + 0.9, len(rows) * (PANEL * tall + 0.25) + 0.35)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, panels) in zip(grid, rows, strict=True):
        for axes in axes_row:
            _bare(axes)
        axes_row[0].set_ylabel(name, fontsize=7.5)
        for axes, panel in zip(axes_row, panels):
            _draw_panel(axes, panel)
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    if any(panel.values.ndim == 2 for _, panels in rows for panel in panels):
        # Beside the first rows: one bar as tall as the figure would be all that is seen of it.
        shrink = min(1.0, 2 / len(rows))
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), HEAT), ax=grid, aspect=25, pad=0.01, shrink=shrink, anchor=(0, 1)
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


def draw_scan_order(picture: np.ndarray, layout: Layout) -> Figure:
    """The order in which the tokens are read, as a line over the image from its first token to its last."""
    height, width = picture.shape[:2]
    figure = new_figure(5.2, 5.2 * min(max(height / width, 0.4), 2.0) * 0.86)
    axes = figure.subplots()
    _bare(axes)
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
            *point, s=36, marker=marker, color="white", edgecolors="black", zorder=3, label=word, clip_on=False
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
    if all(layer.receptive_field is not None for layer in layers):
        strips = {"receptive field of the class token": [layer.receptive_field for layer in layers], **strips}
    figure = new_figure(max(7.0, 2.0 * len(drawn)), 1.5 * len(strips) + 2.6)
    parts = figure.subfigures(2, 1, height_ratios=[1.5 * len(strips), 2.4])
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
        _draw_matrix(axes, found.attention[:, keys], queries, len(queries) == len(keys))
        axes.set_title(found.layer.name, loc="left", **TITLE)
    figure.suptitle(f"{item.name}: in the order in which the tokens are read", fontsize=9.5, x=0.01, ha="left")
    return figure


def _draw_matrix(axes: Axes, weights: np.ndarray, queries: np.ndarray, every: bool) -> None:
    """Queries down, keys to the right; over the maximum of all, or of each row where they are a sample."""
    scale = weights.max() if every else weights.max(-1, keepdims=True)
    shown = weights / np.maximum(scale, 1e-30)
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
        # A number that no network has leaves an empty panel, which no logarithm fits.
        if logarithmic and any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.set_yscale("log")
            for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatter("{x:.3g}")
        axes.set_title(heading, loc="left", **TITLE)
        axes.set_xlabel("depth, of the network's" if unlike else "layer", fontsize=7.5)
        if not unlike:
            axes.xaxis.get_major_locator().set_params(integer=True)
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
        if layout.sequence:
            ending = "" if number == 1 else f"-{number}"
            found[f"scan_order{ending}.png"] = lambda item=item, layout=layout: draw_scan_order(item.picture, layout)
            found[f"in_scan_order{ending}.png"] = lambda item=item: draw_in_scan_order(item)
    return found


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """A white figure, its sides in inches, drawn without a window."""
    figure = Figure((width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure

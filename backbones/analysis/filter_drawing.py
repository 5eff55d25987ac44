"""Pictures of learned filters, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backbones.analysis.figures import TITLE, new_figure
from backbones.analysis.filters import LayerFilters

COLORS = {"before": "#888888", "after": "tab:blue"}
# Frequencies below pass as if they were 0 in any sequence of an image; π is the highest that tokens can carry.
LOWEST, HIGHEST = 1e-4, np.pi
FREQUENCIES = np.geomspace(LOWEST, HIGHEST, 240)
MOST_ROWS = 300

Filters = dict[str, Sequence[LayerFilters]]


def draw_passbands(filters: Filters, layers: Sequence[int]) -> Figure:
    """What each head or channel passes at each frequency, slow ones above, a column a layer.

    Args:
        filters: "before" and "after", or one of them, to all layers of a network.
        layers: Indices of those to draw.
    """
    figure = new_figure(2.3 * len(layers) + 0.9, 2.2 * len(filters) + 0.4)
    all_axes = figure.subplots(len(filters), len(layers), squeeze=False, sharex=True)
    for row, (state, found) in zip(all_axes, filters.items(), strict=True):
        for axes, index in zip(row, layers, strict=True):
            layer = found[index]
            slow_first = np.argsort(np.median(np.abs(layer.decay), axis=1), kind="stable")
            chosen = slow_first[
                np.linspace(0, len(slow_first) - 1, min(len(slow_first), MOST_ROWS)).round().astype(int)
            ]
            part = LayerFilters(layer.name, layer.decay[chosen], layer.phase[chosen])
            image = axes.pcolormesh(
                FREQUENCIES, np.arange(len(chosen)), part.passband(FREQUENCIES), cmap="viridis", vmin=0, vmax=1,
                shading="nearest", rasterized=True,
            )  # fmt: skip
            axes.set(xscale="log", yticks=[])
            axes.invert_yaxis()
            axes.set_title(f"{layer.name}, {state}", loc="left", **TITLE)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel("heads" if len(slow_first) <= 64 else "channels", fontsize=7.5)
    for axes in all_axes[-1]:
        axes.set_xlabel("ω, radians / token", fontsize=7.5)
    bar = figure.colorbar(image, ax=all_axes, aspect=30, pad=0.01)
    bar.set_label("passed, of the peak", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle("Passbands: |λ H(ω)|, root mean square over a bank", fontsize=9.5, x=0.01, ha="left")
    return figure


def draw_histograms(filters: Filters) -> Figure:
    """Half-lives of the decay and frequencies of the phase, all layers together."""
    figure = new_figure(8.2, 2.9)
    left, right = figure.subplots(1, 2)
    for axes, values, heading, unit in (
        (left, lambda layer: layer.half_life, "decay: half-life", "tokens"),
        (right, lambda layer: np.abs(layer.phase), "phase: |θ|", "radians / token"),
    ):
        sets = {state: np.concatenate([values(layer).ravel() for layer in found]) for state, found in filters.items()}
        _draw_histogram(axes, sets)
        axes.set_title(heading, loc="left", **TITLE)
        axes.set_xlabel(unit, fontsize=7.5)
    left.set_ylabel("share of the filters", fontsize=7.5)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_histogram(axes: Axes, sets: dict[str, np.ndarray]) -> None:
    """Shares over logarithmic bins; what is 0 or infinite is written, for it has no place on the axis."""
    placed = {state: values[np.isfinite(values) & (values > 0)] for state, values in sets.items()}
    everything = np.concatenate(list(placed.values()))
    low, high = (everything.min(), everything.max()) if len(everything) else (1.0, 10.0)
    bins = np.geomspace(low / 1.05, high * 1.05, 50)
    for state, values in placed.items():
        without = 1 - len(values) / max(len(sets[state]), 1)
        label = state + (f", {100 * without:.0f} % 0 or infinite" if without > 0 else "")
        weights = np.full(len(values), 1 / max(len(sets[state]), 1))
        axes.hist(values, bins=bins.tolist(), weights=weights, color=COLORS[state], alpha=0.6, label=label)
    axes.set_xscale("log")
    _plain(axes)


def draw_by_layer(filters: Filters) -> Figure:
    """Width and centre of the passbands by layer: median, and from the 10th to the 90th percentile."""
    figure = new_figure(8.2, 2.9)
    left, right = figure.subplots(1, 2)
    for axes, values, heading in (
        (left, lambda layer: layer.width, "width of the passband, 2 |λ|"),
        (right, lambda layer: np.abs(layer.phase), "centre of the passband, |θ|"),
    ):
        for state, found in filters.items():
            low, middle, high = np.array([np.percentile(values(layer), [10, 50, 90]) for layer in found]).T
            depth = np.arange(len(found))
            axes.plot(depth, middle, color=COLORS[state], marker=".", label=f"{state}: median, 10 to 90 %")
            axes.fill_between(depth, low, high, color=COLORS[state], alpha=0.25, linewidth=0)
        axes.set_title(f"{heading}, radians / token", loc="left", **TITLE)
        axes.set_xlabel("layer", fontsize=7.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        # Phase or decay may be absent, and 0 everywhere.
        if any((values(layer) > 0).any() for found in filters.values() for layer in found):
            axes.set_yscale("log")
        _plain(axes)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)

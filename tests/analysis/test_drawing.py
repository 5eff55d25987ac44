"""Pictures: what lies where, and in which order."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from matplotlib.collections import LineCollection

from backbones.analysis import measure
from backbones.analysis.drawing import draw_attention, draw_numbers, draw_receptive_fields, pictures, stretch_colors
from backbones.analysis.figures import Named
from backbones.analysis.filter_drawing import draw_by_layer, draw_histograms, draw_passbands
from backbones.analysis.filters import LayerFilters
from backbones.analysis.models import sequence_layout
from backbones.analysis.order_drawing import _shrink, draw_in_scan_order, draw_scan_order
from backbones.layers.scan_order import TokenGrid, to_sequence
from tests.analysis.test_maps import IMAGE, PLAIN, network_of, shift

PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture
def shifted():
    """A network that looks three tokens back, on 4 × 4 tokens of 16 pixels."""
    network = network_of(shift(3), PLAIN, causal=True)
    return Named("shifted", PICTURE, measure(network, IMAGE, cells=[(0.6, 0.6)], queries=4))


def overlays(figure):
    """The coloured images of the panels, and where they lie."""
    return [(axes, axes.images[1]) for axes in figure.axes if len(axes.images) == 2]


def test_the_receptive_field_lies_on_its_token(shifted):
    figure = draw_receptive_fields([shifted])
    (axes, heat), _ = overlays(figure)
    # The class token is token 16, so that token 13 is seen: the last row's second cell.
    brightness = heat.get_array()[..., :3].sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (3, 1)
    assert heat.get_extent() == [0, 64, 64, 0] and axes.get_xlim() == (0, 64) and axes.get_ylim() == (64, 0)
    assert axes.get_title() == "layer0"


def test_attention_is_that_of_the_marked_token(shifted):
    (axes, heat), _ = overlays(draw_attention([shifted]))
    # The query is the token of row 2, column 2, number 10: it looks at token 7.
    brightness = heat.get_array()[..., :3].sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (1, 3)
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[40, 40]])


@pytest.mark.parametrize("section", [None, (2, 3)])
def test_the_scan_order_drawn_is_that_of_to_sequence(section):
    layout = sequence_layout(TokenGrid(4, 6, 4, 6, section), 16)
    figure = draw_scan_order(np.zeros((64, 96, 3), np.uint8), layout)
    grid = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(4), indexing="xy"), dim=-1)
    points = to_sequence(grid[None], section)[0].numpy() * 16 + 8
    jumps, steps = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    drawn = {tuple(np.ravel(segment)) for lines in (jumps, steps) for segment in lines.get_segments()}
    assert drawn == {tuple(np.ravel(pair)) for pair in pairwise(points)}
    long = [np.abs(b - a).max() > 16 for a, b in pairwise(points)]
    assert len(jumps.get_segments()) == sum(long) > 0
    # The line begins and ends where the sequence does.
    ends = [tuple(c.get_offsets()[0]) for c in figure.axes[0].collections if not isinstance(c, LineCollection)]
    assert ends == [tuple(points[0]), tuple(points[-1])]


def test_maps_in_scan_order(shifted):
    figure = draw_in_scan_order(shifted)
    field, gradient, first, _ = (axes.images[0].get_array() for axes in figure.axes)
    assert field.shape == (2, 16) and field[0].argmax() == 13 and gradient.shape == (2, 16)
    queries = shifted.maps.layers[0].queries
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()] == [str(query) for query in queries]
    assert [row.argmax() for row in first if row.any()] == [query - 3 for query in queries if query >= 3]


def test_numbers_by_layer(shifted):
    axes = draw_numbers([shifted, shifted]).axes
    assert [len(panel.lines) for panel in axes] == [2] * 6
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [1, 1])


def test_a_number_that_has_no_meaning_says_so(shifted):
    layers = [replace(layer, numbers=layer.numbers | {"receptive_field": None}) for layer in shifted.maps.layers]
    without = replace(shifted, maps=replace(shifted.maps, layers=tuple(layers)))
    axes = draw_numbers([without]).axes
    assert [len(panel.texts) for panel in axes] == [1, 1, 0, 0, 0, 0]
    assert draw_receptive_fields([replace(shifted, maps=replace(shifted.maps, drawn=()))]) is None


def test_two_networks_stand_side_by_side(shifted):
    found = pictures([shifted, shifted])
    assert {"scan_order.png", "scan_order-2.png", "in_scan_order-2.png", "erf.png", "features.png"} <= set(found)
    assert len(overlays(found["gradient.png"]())) == 4


def test_peaks_survive_shrinking():
    values = np.zeros(1001)
    values[[3, 500, 1000]] = [1, 2, 3]
    shrunk = _shrink(values, 100)
    assert len(shrunk) == 100 and sorted(shrunk)[-3:] == [1, 2, 3] and shrunk[0] == 1 and shrunk[-1] == 3
    assert _shrink(values[:7], 100).tolist() == values[:7].tolist()


def test_colours_run_from_the_first_to_the_99th_percentile():
    scores = np.stack([np.arange(101.0), np.zeros(101), -np.arange(101.0)], axis=-1)
    colors = stretch_colors(scores)
    np.testing.assert_allclose(colors[50], [0.5, 0, 0.5])
    assert colors[1, 0] == 0 and colors[99, 0] == 1 and colors[100, 0] == 1


def test_filters_before_and_after():
    before = [LayerFilters(f"blocks.{i}", np.full((3, 2), -0.1), np.full((3, 2), 0.3)) for i in range(2)]
    after = [LayerFilters(f"blocks.{i}", np.full((3, 2), -0.02), np.full((3, 2), 0.0)) for i in range(2)]
    filters = {"before": before, "after": after}
    figure = draw_by_layer(filters)
    np.testing.assert_allclose([line.get_ydata() for line in figure.axes[0].lines], [[0.2, 0.2], [0.04, 0.04]])
    panels = [axes for axes in draw_passbands(filters, [0, 1]).axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "blocks.0, before", "blocks.1, before", "blocks.0, after", "blocks.1, after",
    ]  # fmt: skip
    _, labels = draw_histograms(filters).axes[1].get_legend_handles_labels()
    assert labels == ["before", "after, 100 % 0 or infinite"]

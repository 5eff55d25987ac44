"""What networks look at: the paper's maps, their numbers, and the learned filters.

Pictures are in `drawing`, `order_drawing` and `filter_drawing`, which need matplotlib.
"""

from backbones.analysis.filters import LayerFilters, initial_filters, learned_filters
from backbones.analysis.maps import LayerMaps, NetworkMaps, map_layers, measure
from backbones.analysis.models import Layer, Layout, Network, cut, measuring
from backbones.analysis.numbers import effective_tokens, entropy, mean_distance, top_share
from backbones.analysis.recipes import (
    attention_map,
    gradient_maps,
    layer_inputs,
    pixel_erf,
    query_gradients,
    receptive_field,
)

__all__ = [
    "Layer",
    "LayerFilters",
    "LayerMaps",
    "Layout",
    "Network",
    "NetworkMaps",
    "attention_map",
    "cut",
    "effective_tokens",
    "entropy",
    "gradient_maps",
    "initial_filters",
    "layer_inputs",
    "learned_filters",
    "map_layers",
    "mean_distance",
    "measure",
    "measuring",
    "pixel_erf",
    "query_gradients",
    "receptive_field",
    "top_share",
]

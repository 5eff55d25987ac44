"""How much a network over-focuses, and how far the gradient of its loss reaches: the paper's maps in numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backbones.analysis import numbers
from backbones.analysis.models import Network, cut, measuring
from backbones.analysis.recipes import attention_map, gradient_maps, layer_inputs, receptive_field
from backbones.classifier import DefocusClassifier


def deep_layer(depth: int) -> int:
    """Index of the layer whose maps are shown: the last but one, as in the paper's figure (11 of 12, 22 of 24)."""
    return max(depth - 2, 0)


def layer_numbers(model: DefocusClassifier, images: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Numbers of each layer, the mean over images.

    Args:
        model: A trained network.
        images: As the network takes them, `(n, c, H, W)`.
        labels: Their classes, `(n,)`.

    Returns:
        For each layer: "entropy" (nats), "effective_tokens", "top_share" (of the largest 1 % of the tokens) and
        "mean_distance" (pixels) of its attention map, the mean over the queries on the image; "class_…" for the first
        three of them of the class token's receptive field, less the class token; "gradient" (the norm of the loss's
        gradient at its input) and "gradient_tokens" (the effective number of image tokens that it reaches).
    """
    with measuring(model):
        network = cut(model, images[:1])
        found = [_numbers(network, image[None], label[None]) for image, label in zip(images, labels)]
    return [
        {name: numbers.mean([image[layer][name] for image in found]) for name in found[0][layer]}
        for layer in range(len(network.layers))
    ]


def maps(model: DefocusClassifier, image: Tensor, label: int, layer: int) -> dict[str, np.ndarray]:
    """The paper's maps of one image, each divided by its maximum.

    Args:
        model: A trained network.
        image: As the network takes it, `(c, H, W)`.
        label: Its class.
        layer: Index of the layer.

    Returns:
        "attention" `(n, n)` of the image tokens, a row a query; "receptive_field" and "gradient" on the image,
        `(rows, columns)`.
    """
    with measuring(model):
        network = cut(model, image[None])
        inputs = layer_inputs([item.run for item in network.layers], network.embed(image[None]))
        chosen, layout = network.layers[layer], network.layers[layer].before
        of_image = layout.image_tokens
        attention = attention_map(chosen.run, inputs[layer], of_image).numpy()[:, of_image]
        field = receptive_field(chosen.run, inputs[layer], layout.class_token).numpy()
        gradient = _gradients(network, inputs, torch.tensor([label]))[layer]
    found = dict(attention=attention, receptive_field=layout.to_map(field), gradient=layout.to_map(gradient))
    return {name: values / values.max() for name, values in found.items()}


def early_share(layers: Sequence[dict[str, float]]) -> float:
    """The share of the gradient, summed over the layers, that the first third of them has."""
    return numbers.early_share(np.array([layer["gradient"] for layer in layers]))


def _gradients(network: Network, inputs: Sequence[Tensor], label: Tensor) -> list[np.ndarray]:
    """The norm of the gradient of the training loss at each layer's input, by token."""
    steps = [layer.run for layer in network.layers]
    return [found.numpy() for found in gradient_maps(steps, inputs, lambda x: network.loss(network.finish(x), label))]


def _numbers(network: Network, image: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Numbers of each layer on one image."""
    with torch.no_grad():
        tokens = network.embed(image)
    inputs = layer_inputs([layer.run for layer in network.layers], tokens)
    gradients = _gradients(network, inputs, label)
    found = []
    for layer, x, gradient in zip(network.layers, inputs, gradients):
        of_image, places = layer.before.image_tokens, layer.before.positions
        attention = attention_map(layer.run, x, of_image).numpy()[:, of_image]
        field = receptive_field(layer.run, x, layer.before.class_token).numpy()[of_image]
        found.append(
            dict(
                entropy=numbers.mean(numbers.entropy(attention)),
                effective_tokens=numbers.mean(numbers.effective_tokens(attention)),
                top_share=numbers.mean(numbers.top_share(attention)),
                mean_distance=numbers.mean(numbers.mean_distance(attention, places, places)),
                class_entropy=float(numbers.entropy(field)),
                class_effective_tokens=float(numbers.effective_tokens(field)),
                class_top_share=float(numbers.top_share(field)),
                gradient=float(np.linalg.norm(gradient)),
                gradient_tokens=float(numbers.effective_tokens(gradient[of_image])),
            )
        )
    return found

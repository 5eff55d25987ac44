"""All maps and numbers of one network on one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from backbones.analysis import numbers
from backbones.analysis.models import Layer, Layout, Network
from backbones.analysis.recipes import gradient_maps, layer_inputs, pixel_erf, query_gradients, without_residual

# By default so many tokens are run for the queries of a layer: many of a short sequence, few of a long one.
TOKENS_OF_QUERIES = 8192


def layer_runs(depth: int, erf_layers: Sequence[int] = (-1,)) -> int:
    """How often `measure` runs a layer: three times each, and for every field on the pixels those up to its layer."""
    return 3 * depth + sum(index + 1 for index in map_layers(depth, erf_layers))


@dataclass(frozen=True)
class LayerMaps:
    """What was found of one layer; n is the number of its input tokens.

    Attributes:
        layer: The layer.
        receptive_field: Of the class token, `(n,)`; None without one.
        queries: The output tokens whose attention was taken, ascending, `(q,)`.
        attention: `(q, n)`; None for a layer that is not drawn.
        gradient: Of the loss at its input, `(n,)`.
        features: Three principal components of its output tokens, `(rows, columns, 3)`; None if not drawn.
        numbers: What the table says of it: "receptive_field" (None without class token), "attention" and "gradient".
    """

    layer: Layer
    receptive_field: np.ndarray | None
    queries: np.ndarray
    attention: np.ndarray | None
    gradient: np.ndarray
    features: np.ndarray | None
    numbers: dict[str, dict[str, float | None] | None]


@dataclass(frozen=True)
class NetworkMaps:
    """What was found of a network.

    Attributes:
        family: What it is.
        loss: What its gradient was taken of, in words.
        cells: Places on the image, as fractions of its height and width, that are drawn as queries.
        layers: All of them.
        drawn: Indices of those that are drawn.
        erf: Index of a layer to the field on the pixels of its tokens at ``cells``, `(cells, H, W)`.
        summary: Numbers of the whole network.
    """

    family: str
    loss: str
    cells: tuple[tuple[float, float], ...]
    layers: tuple[LayerMaps, ...]
    drawn: tuple[int, ...]
    erf: dict[int, np.ndarray]
    summary: dict[str, float | None]

    def arrays(self) -> dict[str, np.ndarray]:
        """All maps by name, as they are: nothing is divided by its maximum."""
        found: dict[str, np.ndarray] = {"cells": np.asarray(self.cells)}
        found |= {f"{self.layers[index].layer.name}/erf": field for index, field in self.erf.items()}
        for item in self.layers:
            before = item.layer.before
            found[f"{item.layer.name}/gradient"] = item.gradient
            found[f"{item.layer.name}/grid"] = np.array([before.rows, before.columns, before.stride])
            found[f"{item.layer.name}/token_cells"] = before.cells
            if item.receptive_field is not None:
                found[f"{item.layer.name}/receptive_field"] = item.receptive_field
            if item.attention is not None and item.features is not None:
                found[f"{item.layer.name}/attention"] = item.attention
                found[f"{item.layer.name}/queries"] = item.queries
                found[f"{item.layer.name}/features"] = item.features
        return found


def map_layers(depth: int, asked: Sequence[int] | None = None) -> tuple[int, ...]:
    """The layers to draw.

    Args:
        depth: How many there are.
        asked: Indices, negative ones from the end; None for a quarter, a half, three quarters of the depth and the last
            but one, of which the paper shows maps.

    Returns:
        Ascending, each once.

    Raises:
        ValueError: There is no such layer.
    """
    if asked is None:
        return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4, max(depth - 2, 0)}))
    outside = [index for index in asked if not -depth <= index < depth]
    if outside:
        raise ValueError(
            f"there is no layer {outside[0]}: this network has {depth}, 0 to {depth - 1} or -{depth} to -1"
        )
    return tuple(sorted({index % depth for index in asked}))


def measure(
    network: Network,
    image: Tensor,
    *,
    layers: Sequence[int] | None = None,
    cells: Sequence[tuple[float, float]] = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75)),
    queries: int | None = None,
    target: int | None = None,
    erf_layers: Sequence[int] = (-1,),
    tick: Callable[[], object] = lambda: None,
) -> NetworkMaps:
    """Runs every recipe on every layer.

    Args:
        network: As of `cut`, of a model in `measuring`.
        image: `(1, c, H, W)`, of the size that it was cut for.
        layers: Those whose attention and features are kept, as of `map_layers`.
        cells: Places that are queries of attention and of the pixels' receptive field, as fractions of height and
            width.
        queries: Further queries of attention: an even grid of at most so many, all tokens on the image where there are
            no more; None for `TOKENS_OF_QUERIES` over the length of the sequence.
        target: The class whose loss is differentiated; None for the one that the network predicts.
        erf_layers: Those whose field on the pixels is taken: indices, negative ones from the end.
        tick: Called at each of the `layer_runs`, to show progress.

    Raises:
        ValueError: No such layer, no such class, a class without a head, a cell outside of the image.
    """
    outside = [cell for cell in cells if not all(0 <= part <= 1 for part in cell)]
    if outside:
        raise ValueError(f"a query cell is a row and a column as fractions, 0 to 1, of the image; got {outside[0]}")
    drawn, last = map_layers(len(network.layers), layers), len(network.layers) - 1
    erf_layers = map_layers(len(network.layers), erf_layers)
    counted = [replace(layer, run=_counted(layer.run, tick)) for layer in network.layers]
    functions = [layer.run for layer in counted]
    whole = [network.embed, *functions, network.finish]
    image, *inputs, end = layer_inputs(whole, image)
    classes, words = _target(network, end, target)
    gradients = [
        _array(found) for found in gradient_maps(functions, inputs, lambda x: network.loss(network.finish(x), classes))
    ]
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    # What a map shows of the last layer has passed the final norm.
    outputs = [*inputs[1:-1], end]
    found = []
    for index, (layer, reach) in enumerate(zip(counted, numbers.gradient_reach(norms), strict=True)):
        length = len(layer.before.cells)
        tokens = _queries(layer.after, cells, TOKENS_OF_QUERIES // length if queries is None else queries)
        field, attention = _attention(layer, inputs[index], tokens)
        found.append(
            LayerMaps(
                layer=network.layers[index],
                receptive_field=field,
                queries=tokens,
                attention=attention if index in drawn else None,
                gradient=gradients[index],
                features=_features(layer.after, outputs[index]) if index in drawn else None,
                numbers=_numbers(layer, field, tokens, attention, gradients[index], reach),
            )
        )
    erf = {}
    for index in erf_layers:
        # Image, embedding, the layers up to this one; the last one's tokens pass the final norm.
        count = len(whole) if index == last else index + 2
        queried = [network.layers[index].after.token_at(*cell) for cell in cells]
        erf[index] = _array(pixel_erf(whole[:count], [image, *inputs, end][: count + 1], queried))
    return NetworkMaps(
        family=network.family,
        loss=words,
        cells=tuple(cells),
        layers=tuple(found),
        drawn=drawn,
        erf=erf,
        summary=_summary(found, norms, erf),
    )


def _counted(run: Callable[[Tensor], Tensor], tick: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    def layer(tokens: Tensor) -> Tensor:
        tick()
        return run(tokens)

    return layer


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _target(network: Network, end: Tensor, target: int | None) -> tuple[Tensor | None, str]:
    """The classes that the loss is given, and what it is in words."""
    if network.logits is None:
        if target is not None:
            raise ValueError(f"this {network.family} has no head, and so no class {target}: leave out the target")
        return None, "no head: the norm of the mean of the last tokens on the image"
    with torch.no_grad():
        logits = network.logits(end)
    if target is not None and not 0 <= target < logits.shape[-1]:
        raise ValueError(f"there is no class {target}: the head has {logits.shape[-1]}, from 0 on")
    predicted = logits.argmax(-1)
    if target is None:
        return predicted, f"training loss for class {predicted.item()}, which is predicted"
    return torch.full_like(predicted, target), f"training loss for class {target}"


def _queries(layout: Layout, cells: Sequence[tuple[float, float]], count: int) -> np.ndarray:
    """The output tokens whose attention is taken, ascending: all, or those at the cells and on an even grid."""
    if count >= len(layout.image_tokens):
        return layout.image_tokens
    rows = min(layout.rows, max(1, round((count * layout.rows / layout.columns) ** 0.5)), max(count, 1))
    columns = min(layout.columns, count // rows)
    grid = [((i + 0.5) / rows, (k + 0.5) / columns) for i in range(rows) for k in range(columns)]
    return np.unique([layout.token_at(*cell) for cell in (*cells, *grid)]).astype(int)


def _attention(layer: Layer, tokens: Tensor, queries: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Receptive field of the class token `(n,)` and attention of the queries `(q, n)`, by one forward."""
    own = [] if layer.after.class_token is None else [layer.after.class_token]
    weights = query_gradients(layer.run, tokens, [*own, *queries])
    attention = weights[len(own) :]
    if layer.residual:
        attention = without_residual(attention, queries.tolist())
    return _array(weights[0]) if own else None, _array(attention)


def _features(layout: Layout, tokens: Tensor) -> np.ndarray:
    """Three principal components of the tokens on the image, `(rows, columns, 3)`."""
    scores, _ = numbers.principal_components(_array(tokens[0])[layout.image_tokens])
    full = np.zeros((3, len(layout.cells)))
    full[:, layout.image_tokens] = scores.T
    return np.moveaxis(layout.to_map(full), 0, -1)


def _numbers(
    layer: Layer,
    field: np.ndarray | None,
    queries: np.ndarray,
    attention: np.ndarray,
    gradient: np.ndarray,
    reach: float,
) -> dict[str, dict[str, float | None] | None]:
    before, after = layer.before, layer.after
    on_image = before.image_tokens
    # What a query may see besides itself.
    seen = (on_image <= queries[:, None]).sum(-1) if layer.causal else np.full(len(queries), len(on_image))
    looked = _focus(attention, before, seen - int(layer.residual))
    # Where a layer changes the grid a token has no index in common with the queries, and no distance in a sequence.
    along = before.ordered and layer.residual
    centre = after.positions[np.searchsorted(after.image_tokens, queries)]
    looked |= {
        "distance_tokens": _distance(attention[:, on_image], queries[:, None], on_image[:, None]) if along else None,
        "distance_patches": _distance(attention[:, on_image], centre / before.stride, before.positions / before.stride),
        "queries": len(queries),
    }
    sensed = None
    if field is not None:
        sensed = _focus(field[None], before, np.array([len(on_image)]))
        where = np.array([[after.class_token]])
        sensed["distance_tokens"] = _distance(field[None, on_image], where, on_image[:, None])
    learned = _focus(gradient[None], before, np.array([len(on_image)]))
    learned |= {"norm": _number(float(np.linalg.norm(gradient))), "of_last_layer": _number(reach)}
    return {"receptive_field": sensed, "attention": looked, "gradient": learned}


def _focus(weights: np.ndarray, layout: Layout, seen: np.ndarray) -> dict[str, float | None]:
    """Means over the rows of `(q, n)`: of the tokens on the image, and what those of padding hold beside them."""
    on_image = weights[:, layout.image_tokens]
    effective = numbers.effective_tokens(on_image)
    parts = np.stack((weights[:, layout.padding].sum(-1), on_image.sum(-1)), axis=-1)
    return {
        "entropy": _number(numbers.mean(numbers.entropy(on_image))),
        "effective_tokens": _number(numbers.mean(effective)),
        "effective_share": _number(numbers.mean(effective[seen > 0] / seen[seen > 0])),
        "top_share": _number(numbers.mean(numbers.top_share(on_image))),
        "on_padding": _number(numbers.mean(numbers.shares(parts)[:, 0])) if layout.padding.any() else None,
    }


def _distance(weights: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> float | None:
    return _number(numbers.mean(numbers.mean_distance(weights, queries, keys)))


def _number(value: float) -> float | None:
    """A number that JSON can hold: None for what is none."""
    return float(value) if np.isfinite(value) else None


def _summary(layers: Sequence[LayerMaps], norms: np.ndarray, erf: dict[int, np.ndarray]) -> dict[str, float | None]:
    """Means over the layers, and what the whole network's gradient and the last field on the pixels say."""
    found: dict[str, float | None] = {}
    for recipe in ("receptive_field", "attention", "gradient"):
        for name in ("effective_tokens", "effective_share", "top_share"):
            values = [of_recipe[name] for item in layers if (of_recipe := item.numbers[recipe]) is not None]
            found[f"{recipe}_{name}"] = _number(numbers.mean(np.array([np.nan if v is None else v for v in values])))
    found["early_gradient_share"] = _number(numbers.early_share(norms))
    if erf:
        pixels = erf[max(erf)].reshape(len(erf[max(erf)]), -1)
        found["erf_effective_share"] = _number(numbers.mean(numbers.effective_tokens(pixels) / pixels.shape[-1]))
    return found

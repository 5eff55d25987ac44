"""Numbers that say how much a map over-focuses; numpy in float64, pure functions of arrays.

A map is a row of weights, none negative, one a token; a row that is all 0 has no answer, NaN. Arrays may have any
dimensions before the last one.
"""

from __future__ import annotations

import math

import numpy as np


def shares(weights: np.ndarray) -> np.ndarray:
    """Weights `(…, n)` over their sum."""
    weights = np.asarray(weights, np.float64)
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.full_like(weights, np.nan), where=total > 0)


def entropy(weights: np.ndarray) -> np.ndarray:
    """-Σ p log p of the shares p, in nats, `(…)`: 0 for one token alone, log n for all alike."""
    p = shares(weights)
    # + 0.0 because the negative of a sum of zeros is -0.
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) + 0.0


def effective_tokens(weights: np.ndarray) -> np.ndarray:
    """exp of the entropy: the number of tokens that, all alike, have that entropy."""
    return np.exp(entropy(weights))


def top_share(weights: np.ndarray, fraction: float = 0.01) -> np.ndarray:
    """The share that the largest ``fraction`` of the n tokens holds, rounded up to whole tokens, `(…)`."""
    p = shares(weights)
    count = math.ceil(fraction * p.shape[-1])
    return np.sort(p, axis=-1)[..., -count:].sum(-1)


def mean_distance(weights: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Mean distance between a query and what it looks at, weighted by the shares.

    Args:
        weights: `(q, n)`.
        queries: Where the queries stand, `(q, dimensions)`.
        keys: Where the tokens stand, `(n, dimensions)`, in the same unit.

    Returns:
        `(q,)`, Euclidean.
    """
    offsets = np.asarray(queries, np.float64)[:, None] - np.asarray(keys, np.float64)[None]
    return np.sum(shares(weights) * np.sqrt(np.sum(offsets**2, axis=-1)), axis=-1)


def gradient_reach(norms: np.ndarray) -> np.ndarray:
    """Each layer's gradient as a share of the last one's: above 1 where it grows on its way back.

    Args:
        norms: L2 norm of the gradient at each layer's input, in the order of the layers, `(layers,)`.
    """
    norms = np.asarray(norms, np.float64)
    return np.divide(norms, norms[-1], out=np.full_like(norms, np.nan), where=norms[-1] > 0)


def early_share(norms: np.ndarray) -> float:
    """The share of the summed gradient norms that the first third of the layers holds, rounded up to whole layers.

    Were all layers reached alike it would be a third.
    """
    p = shares(norms)
    return float(p[: math.ceil(len(p) / 3)].sum())


def mean(values: np.ndarray) -> float:
    """The mean of those that are numbers; NaN where none is."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def principal_components(features: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Principal component analysis.

    Args:
        features: `(n, c)`, a row a token.
        count: Components wanted; 0 fills up where there are fewer.

    Returns:
        The tokens' coordinates `(n, count)`, the largest of each component positive, and the components' share of the
        variance `(count,)`.
    """
    features = np.asarray(features, np.float64)
    centred = features - features.mean(0)
    found, directions = np.linalg.eigh(centred.T @ centred)
    variance = np.zeros(count)
    scores = np.zeros((len(features), count))
    kept = min(count, len(found))
    variance[:kept] = found[::-1][:kept].clip(min=0)
    scores[:, :kept] = centred @ directions[:, ::-1][:, :kept]
    largest = scores[np.abs(scores).argmax(0), np.arange(count)]
    scores *= np.where(largest < 0, -1.0, 1.0)
    total = np.trace(centred.T @ centred)
    return scores, variance / total if total > 0 else variance

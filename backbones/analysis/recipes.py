"""What a layer looks at, and what reaches it in training: maps by gradients alone (arXiv 2406.04342, appendix B.1).

A layer is any function of tokens `(b, n, c)` to tokens `(b, m, d)` that treats the samples of a batch apart. So the
recipes are the same for every mixer, and for attention in windows and convolutions too.

A Jacobian is local: it needs the layer and its input, nothing before. Each recipe runs a layer again on its saved
input, and keeps the graph of one layer at a time. Queries go in blocks: as many copies of the sequence as
`TOKENS_AT_ONCE` holds stand in one batch, each differentiated for another query. Gradients batched by vmap
(``is_grads_batched``) come out the same, but later: the compiled operators have no rule for it and run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Copies of a short sequence share their matrix products; of a long one a copy is work enough.
TOKENS_AT_ONCE = 2048


def query_gradients(layer: Function, tokens: Tensor, queries: Sequence[int]) -> Tensor:
    """‖∂‖y_t‖ / ∂x_s‖ of y = layer(x): how much the size of an output token t hangs on each input token s.

    Args:
        layer: Tokens to tokens.
        tokens: x, `(1, n, c)`.
        queries: The output tokens t.

    Returns:
        `(len(queries), n)`.
    """
    chosen = torch.as_tensor(list(queries), device=tokens.device)

    def sizes(y: Tensor, start: int, stop: int) -> Tensor:
        own = torch.arange(stop - start, device=y.device)
        return torch.linalg.vector_norm(y[own, chosen[start:stop]], dim=-1).sum()

    blocks = [torch.linalg.vector_norm(grad, dim=-1) for grad in _gradients(layer, tokens, len(chosen), sizes)]
    return torch.cat(blocks) if blocks else tokens.new_empty(0, tokens.shape[1])


def receptive_field(layer: Function, tokens: Tensor, class_token: int) -> Tensor:
    """How much the class token's size on the layer's output hangs on each token of its input, `(n,)`.

    Args:
        layer: Tokens to tokens.
        tokens: The layer's input, `(1, n, c)`.
        class_token: Index of the class token.
    """
    return query_gradients(layer, tokens, [class_token])[0]


def attention_map(layer: Function, tokens: Tensor, queries: Sequence[int]) -> Tensor:
    """The approximated attention map: `query_gradients` less the residual.

    Args:
        layer: Tokens to as many tokens, output token t where input token t stands.
        tokens: The layer's input, `(1, n, c)`.
        queries: Output tokens, a row each.

    Returns:
        `(len(queries), n)`; what a query has of itself is 0.
    """
    return without_residual(query_gradients(layer, tokens, queries), queries)


def without_residual(weights: Tensor, queries: Sequence[int]) -> Tensor:
    """``weights`` `(len(queries), n)` with 0 where the input token is the query itself."""
    weights = weights.clone()
    weights[torch.arange(len(weights)), list(queries)] = 0
    return weights


def gradient_maps(
    layers: Sequence[Function], inputs: Sequence[Tensor], loss: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The gradient of a loss at each layer's input: its L2 norm per token.

    Args:
        layers: In the order in which they run.
        inputs: As of `layer_inputs`, of one image.
        loss: What the last layer gives to a scalar.

    Returns:
        `(n,)` for each layer, n as of its input.
    """
    end = inputs[-1].detach().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(loss(end), end)
    maps = []
    for layer, x in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        grad = pull_back(layer, x, grad)
        maps.append(torch.linalg.vector_norm(grad[0], dim=-1))
    return maps[::-1]


def pixel_erf(functions: Sequence[Function], inputs: Sequence[Tensor], queries: Sequence[int]) -> Tensor:
    """The effective receptive field of tokens on the pixels, by the recipe of RepLKNet (arXiv 2203.06717).

    That is the gradient of the sum of a token's positive features; its positive part, summed over the channels of the
    image.

    Args:
        functions: Image to tokens, then tokens to tokens.
        inputs: As of `layer_inputs` of these functions and an image `(1, channels, H, W)`.
        queries: Tokens of the last function's output.

    Returns:
        `(len(queries), H, W)`.
    """
    features = inputs[-1][0]
    grads = features.new_zeros(len(queries), *features.shape)
    for row, query in enumerate(queries):
        grads[row, query] = (features[query] > 0).to(features.dtype)
    for function, x in zip(reversed(functions), reversed(inputs[:-1]), strict=True):
        grads = pull_back(function, x, grads)
    return grads.clamp_min(0).sum(1)


def layer_inputs(layers: Sequence[Function], tokens: Tensor) -> list[Tensor]:
    """What each layer is given, in order, and at the end what the last one gives: one more than there are layers."""
    inputs = [tokens.detach()]
    with torch.no_grad():
        for layer in layers:
            inputs.append(layer(inputs[-1]))
    return inputs


def pull_back(layer: Function, tokens: Tensor, grads: Tensor) -> Tensor:
    """Gradients on a layer's output carried to its input.

    Args:
        layer: The layer.
        tokens: Its input, one sample.
        grads: `(q, …)`: q gradients, each as the output of one sample.

    Returns:
        `(q, …)`: each as the input.
    """

    def product(y: Tensor, start: int, stop: int) -> Tensor:
        return (y[: stop - start] * grads[start:stop]).sum()

    return torch.cat(list(_gradients(layer, tokens, len(grads), product)))


def _gradients(
    layer: Function, tokens: Tensor, count: int, objective: Callable[[Tensor, int, int], Tensor]
) -> Iterator[Tensor]:
    """Gradients at ``tokens`` of ``count`` objectives, a block of them at a time.

    Args:
        layer: Tokens to tokens.
        tokens: One sample.
        count: How many objectives there are.
        objective: Given the outputs of some copies, start and stop: the sum of objectives start to stop - 1, the first
            of the first copy, and so on.
    """
    length = tokens.shape[1] if tokens.ndim == 3 else TOKENS_AT_ONCE
    copies = max(1, min(count, TOKENS_AT_ONCE // length))
    x = tokens.detach().repeat(copies, *(1,) * (tokens.ndim - 1)).requires_grad_()
    with torch.enable_grad():
        # All copies are equal: one forward serves every block.
        y = layer(x) if count else x
        for start in range(0, count, copies):
            stop = min(start + copies, count)
            (grad,) = torch.autograd.grad(objective(y, start, stop), x, retain_graph=stop < count)
            yield grad[: stop - start]

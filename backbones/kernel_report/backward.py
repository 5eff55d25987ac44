"""Backward without autograd's engine, which insists on a GPU where there are tensors of one.

The nodes of the graph are the engine's own, called one after another in its order; each is let go when it is done, and
its saved tensors with it.
"""

import contextlib
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function, FunctionCtx


@contextlib.contextmanager
def followed() -> Iterator[None]:
    """A context for forward, so that `gradients` can do without the engine afterwards."""
    # A class method of Python's, or from torch 2.15 on one of C's.
    apply, materialize = vars(Function)["apply"], FunctionCtx.set_materialize_grads

    def remember(context, value):
        materialize(context, value)
        # It cannot be asked for.
        context.takes_none = not value

    def own(function, *args, **kwargs):
        out = apply.__get__(None, function)(*args, **kwargs)
        outputs = [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)]
        differentiable = next((x for x in outputs if isinstance(x.grad_fn, BackwardCFunction)), None)
        if differentiable is not None:
            node: Any = differentiable.grad_fn
            node.outputs = [(tuple(x.shape), x.dtype, x.device) for x in outputs]
            node.from_tensor = [isinstance(x, Tensor) for x in args]
            # A node written in Python lives as long as a node that leads to it; this one is there for that alone.
            with torch.enable_grad():
                node.owner = differentiable.view_as(differentiable).grad_fn
        return out

    with (
        patch.object(Function, "apply", classmethod(own)),
        patch.object(FunctionCtx, "set_materialize_grads", remember),
    ):
        yield


def gradients(out: Tensor) -> list[Tensor]:
    """The gradients of all leaves behind ``out``, its own gradient being one of its size.

    What forward kept is let go on the way if nobody but the caller's call holds ``out``.
    """
    # Nodes of the graph, those of Python among them, have attributes that their types do not tell.
    root: Any = out.grad_fn
    slot, grad = out.output_nr, torch.ones_like(out)
    # Its memory stays, as a loss would, without the graph.
    out = out.detach()
    waiting = _edges(root)
    # By node: the gradient of each of its outputs.
    given: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    given[root][slot] = grad
    number = itertools.count()
    ready = [(-root._sequence_nr(), next(number), root)]
    del grad, root
    found: dict[Any, Tensor] = {}
    with torch.no_grad():
        while ready:
            node = heapq.heappop(ready)[2]
            if hasattr(node, "variable"):
                found[node.variable] = given.pop(node)[0]
                continue
            results = [*_call(node, given.pop(node, {}))]
            for following, slot in node.next_functions:
                result = results.pop(0)
                if following is None:
                    continue
                if result is not None:
                    _add(given[following], slot, _fitted(result, following._input_metadata[slot]))
                waiting[following] -= 1
                if not waiting[following]:
                    del waiting[following]
                    heapq.heappush(ready, (-following._sequence_nr(), next(number), following))
            if isinstance(node, BackwardCFunction):
                del cast(Any, node).owner
            del node, results, following, result
    return list(found.values())


def _edges(root: Any) -> Counter:
    """How many nodes lead to each one."""
    count: Counter = Counter()
    stack, seen = [root], {root}
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                count[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    return count


def _call(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    own = isinstance(node, BackwardCFunction)
    if not own:
        results = node(*(given.get(i) for i in range(len(node._input_metadata))))
    else:
        takes_none = getattr(node, "takes_none", False)
        results = node.apply(
            *(
                given[i] if i in given else None if takes_none else torch.zeros(shape, dtype=dtype, device=device)
                for i, (shape, dtype, device) in enumerate(node.outputs)
            )
        )
    results = results if isinstance(results, tuple) else (results,)
    # There are edges to tensors only.
    return tuple(itertools.compress(results, node.from_tensor)) if own else results


def _add(given: dict[int, Tensor], slot: int, grad: Tensor) -> None:
    given[slot] = given[slot] + grad if slot in given else grad


def _fitted(grad: Tensor, metadata: Any) -> Tensor:
    """As the engine does where a value was spread over more elements, or cast on the way."""
    shape = tuple(metadata.shape)
    grad = grad if tuple(grad.shape) == shape else grad.sum_to_size(shape)
    return grad if grad.dtype == metadata.dtype else grad.to(metadata.dtype)

"""What the exported forms of the operations have in common: plain PyTorch, any length, bounded memory.

A traced program has no Python loop whose length it does not know. These forms go through a sequence a chunk at a time
by `torch`'s scan operator, which becomes a loop of ONNX, or by its while loop; within a chunk they are parallel.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.dispatch import is_exporting

_without_scan = False


@contextlib.contextmanager
def without_scan() -> Iterator[None]:
    """While it lasts, what is exported has no scan operator, for those who compile it.

    PyTorch 2.11's AOTInductor makes of a scan a while loop that writes into what it carries, and then loses it.
    """
    global _without_scan
    before, _without_scan = _without_scan, True
    try:
        yield
    finally:
        _without_scan = before


def has_scan() -> bool:
    """Whether what is exported may have the scan operator; see `without_scan`."""
    return not _without_scan


def over_chunks(step: Callable, state: Tensor, chunks: Tensor, constants: Sequence[Tensor]) -> Tensor:
    """Calls ``step`` on one chunk after another.

    Args:
        step: ``(state, chunk, *constants)`` to the next state, in shape and dtype as before, and an output, neither
            of them a view of an input.
        state: That before the first chunk.
        chunks: The chunks, along the first dimension.
        constants: What each step reads; an exported step sees no other tensor.

    Returns:
        The outputs, along the first dimension.
    """
    if torch.compiler.is_dynamo_compiling():
        from torch._higher_order_ops.scan import scan

        return scan(lambda state, chunk: step(state, chunk, *constants), state, chunks)[1]
    if is_exporting() and not has_scan():
        return _while_chunks(step, state, chunks, constants)
    if is_exporting():
        # Without `scan`, which has each step traced once more by `torch.compile`.
        from torch._higher_order_ops.scan import scan_op

        return scan_op(step, [state], [chunks], tuple(constants))[1]
    outputs = []
    for chunk in chunks:
        state, output = step(state, chunk, *constants)
        outputs.append(output)
    return torch.stack(outputs)


def _while_chunks(step: Callable, state: Tensor, chunks: Tensor, constants: Sequence[Tensor]) -> Tensor:
    """`over_chunks` by a while loop, which makes the outputs anew in each step: a compiler loses what is written to."""
    from torch._higher_order_ops.while_loop import while_loop_op

    count = chunks.shape[0]
    place = torch.arange(count, device=chunks.device)
    # For its shape alone: nothing reads it, so that the program does not have it.
    output = step(state, chunks[0], *constants)[1]

    def unfinished(i: Tensor, state: Tensor, outputs: Tensor, place: Tensor, chunks: Tensor, *constants) -> Tensor:
        return i < chunks.shape[0]

    def go_on(i: Tensor, state: Tensor, outputs: Tensor, place: Tensor, chunks: Tensor, *constants) -> tuple:
        state, output = step(state, chunks.index_select(0, i.reshape(1))[0], *constants)
        here = (place == i).reshape(-1, *[1] * output.ndim)
        return i + 1, state, torch.where(here, output, outputs)

    # The operator says that it carries one thing; it carries any number.
    carried: Any = (place.new_zeros(()), state, output.new_zeros(count, *output.shape))
    return while_loop_op(unfinished, go_on, carried, (place, chunks, *constants))[2]


def cut(x: Tensor, chunk: int) -> Tensor:
    """A sequence `(b, l, c)`, zeros behind it, as chunks `(l // chunk + 2, b, chunk, c)`, rounded down from l - 1 on.

    One chunk more than needed: a program that was traced with several does not serve a single one.
    """
    b, length, channels = x.shape
    count = (length - 1) // chunk + 2
    padded = F.pad(x, (0, 0, 0, count * chunk - length))
    return padded.reshape(b, count, chunk, channels).transpose(0, 1).contiguous()


def join(chunks: Tensor, length: int) -> Tensor:
    """The inverse of `cut`: the first ``length`` tokens, `(b, length, c)`."""
    return take_first(chunks.transpose(0, 1).flatten(1, 2), 1, length)


def cut_heads(x: Tensor, chunk: int) -> Tensor:
    """As `cut`, of `(b, l, h, c)`: `(l // chunk + 2, b, h, chunk, c)`."""
    return cut(x.flatten(2), chunk).unflatten(3, x.shape[2:]).transpose(2, 3).contiguous()


def join_heads(chunks: Tensor, length: int) -> Tensor:
    """The inverse of `cut_heads`: `(b, length, h, c)`."""
    heads, _, channels = chunks.shape[2:]
    return join(chunks.transpose(2, 3).flatten(3), length).unflatten(2, (heads, channels))


def take_first(x: Tensor, dim: int, count: int) -> Tensor:
    """The first ``count`` elements along a dimension that has no fewer: a slice whose size an exporter knows."""
    first = x.narrow(dim, 0, count)
    # It does not see that there are no fewer.
    torch._check(first.shape[dim] == count)
    return first

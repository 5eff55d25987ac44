"""The De-focus scan as a program for a compiler that fuses: no loop from token to token or from block to block.

A sequence is cut into blocks, these into groups, and these into chunks of tokens. What chunks, groups and blocks add to
the state are sums. From them come the states before each block, by doubling how far back they reach, and then before
each group and each chunk, all of a level at once; only within a chunk states follow token by token, in all chunks
together. Of every chunk there is a state in memory, of a token none: compiled, the steps of a chunk are one loop over
channels and states.

Decays over several tokens are exponentials of sums of steps, never quotients, so that none overflows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.ops.exported import take_first

# Groups of a block, chunks of a group, tokens of a chunk. Each token unrolled is a dozen nodes for the compiler.
GROUPS, CHUNKS, TOKENS = 4, 8, 8


def scan_in_levels(delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y of the recurrence h_t = exp(Δ_t A) h_{t-1} + x_t B_t, y_t = C_t · h_t.

    Args:
        delta: Δ, `(b, l, d)`, not negative.
        x: Δ u, `(b, l, d)`.
        A: Decay rates, `(n, d)`.
        B: Input weights, turned, `(b, l, n)`.
        C: Output weights, turned, `(b, l, n)`.

    Returns:
        `(b, l, d)`.
    """
    length = delta.shape[1]
    delta, x, B, C = (_cut(sequence) for sequence in (delta, x, B, C))
    chunks, groups = delta.sum(-2), delta.sum((-2, -3))
    by_chunk = _added(delta, B[..., None] * x[..., None, :], A)
    by_group = _added(chunks, by_chunk, A)
    state = _before_blocks(groups.sum(-2), _added(groups, by_group, A), A)
    state = _before_each(_before_each(state, groups, by_group, A), chunks, by_chunk, A)
    y = []
    for step, value, write, read in zip(*(sequence.unbind(-2) for sequence in (delta, x, B, C)), strict=True):
        state = torch.exp(step[..., None, :] * A) * state + write[..., None] * value[..., None, :]
        y.append((read[..., None] * state).sum(-2))
    return take_first(torch.stack(y, -2).flatten(1, 4), 1, length)


def _cut(x: Tensor) -> Tensor:
    """`(b, l, c)`, zeros behind it, as `(b, blocks, GROUPS, CHUNKS, TOKENS, c)`. Zeros add and decay nothing."""
    block = GROUPS * CHUNKS * TOKENS
    count = (x.shape[1] + block - 1) // block
    return F.pad(x, (0, 0, 0, count * block - x.shape[1])).unflatten(1, (count, GROUPS, CHUNKS, TOKENS))


def _added(delta: Tensor, added: Tensor, A: Tensor) -> Tensor:
    """What each t steps add to the state behind them, `(..., n, d)`.

    Args:
        delta: Steps, `(..., t, d)`.
        added: What each adds to the state, `(..., t, n, d)`.
        A: Decay rates, `(n, d)`.
    """
    i = torch.arange(delta.shape[-2], device=A.device)
    after = torch.matmul((i > i[:, None]).to(A.dtype), delta)
    return (torch.exp(after[..., None, :] * A) * added).sum(-3)


def _before_each(state: Tensor, delta: Tensor, added: Tensor, A: Tensor) -> Tensor:
    """The states before each of t steps, `(..., t, n, d)`, from that before all of them.

    Args:
        state: Before the first, `(..., n, d)`.
        delta: As of `_added`.
        added: As of `_added`.
        A: As of `_added`.
    """
    steps = delta.shape[-2]
    i = torch.arange(steps, device=A.device)
    earlier = i < i[:, None]
    between = (earlier.mT & earlier[:, None]).flatten(0, 1)
    distance = torch.matmul(between.to(A.dtype), delta).unflatten(-2, (steps, steps))
    decay = _decay(earlier, distance, A)
    since = torch.matmul(earlier.to(A.dtype), delta)
    return (decay * added[..., None, :, :, :]).sum(-3) + torch.exp(since[..., None, :] * A) * state[..., None, :, :]


def _before_blocks(delta: Tensor, added: Tensor, A: Tensor) -> Tensor:
    """As `_before_each` from no state, of any number of steps m: `(b, m, n, d)`, in log2 m + 1 rounds.

    In each round every state takes in the one as far back as it reaches itself, and so reaches twice as far.
    """
    from torch._higher_order_ops.while_loop import while_loop_op

    place = torch.arange(delta.shape[1], device=A.device)

    def unfinished(reach: Tensor, delta: Tensor, state: Tensor, place: Tensor, A: Tensor) -> Tensor:
        # Never no round: what a compiled loop carries in is then its result, and is overwritten while that is read.
        return reach <= place.shape[0]

    def go_on(reach: Tensor, delta: Tensor, state: Tensor, place: Tensor, A: Tensor) -> tuple:
        back = (place - reach).clamp_min(0)
        past = torch.exp(delta[:, :, None] * A) * state.index_select(0, back)
        return reach * 2, delta + delta.index_select(0, back), state + past

    # A step later: what lies before a block ends with the one before it. Before the first lies nothing.
    delta, added = (F.pad(x.transpose(0, 1), (0, 0) * (x.ndim - 1) + (1, 0))[:-1] for x in (delta, added))
    # The operator says that it carries one thing; it carries any number.
    carried: Any = (place.new_ones(()), delta.contiguous(), added.contiguous())
    return while_loop_op(unfinished, go_on, carried, (place, A))[2].transpose(0, 1)


def _decay(earlier: Tensor, distance: Tensor, A: Tensor) -> Tensor:
    """From step j to step i, `(..., i, j, n, d)`, 0 where j does not lie before i and would grow."""
    return torch.exp(torch.where(earlier[:, :, None, None], distance[..., None, :] * A, float("-inf")))

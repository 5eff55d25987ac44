"""Where each map lies among the tokens, for kernels that look it up on the device."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def level_table(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Height, width, first token and first place of each map.

    A map of (h, w) has (h + 1)(w + 1) places, one for each pixel that can be the upper left one of the four around a
    point: there is one more row above, and one more column on the left.

    Args:
        shapes: (height, width) of each map.
        device: Where it is wanted.

    Returns:
        `(maps, 4)`, int64. The same tensor for the same arguments, so that only the first call waits for the device,
        and what has run once can be captured in a CUDA graph.
    """
    return _table(tuple((int(h), int(w)) for h, w in shapes), device)


# Never emptied: a graph that was captured goes on to read its table. One takes half a kilobyte.
@functools.cache
def _table(shapes, device):
    rows, token, place = [], 0, 0
    for h, w in shapes:
        rows.append((h, w, token, place))
        token += h * w
        place += (h + 1) * (w + 1)
    # What is made in inference mode could not be kept for a backward pass later.
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int64, device=device)

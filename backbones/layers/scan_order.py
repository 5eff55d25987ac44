"""In which order a causal backbone reads the tokens of an image.

Row order reads the whole image line by line. The 2D-section scan of De-focus Attention Networks cuts the grid into
sections as large as the pre-training image: the tokens of a section follow one another row by row, and the sections
follow one another row by row, so that a checkpoint sees within each section the order it was trained with.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from backbones.ops.exported import take_first


class TokenGrid(NamedTuple):
    """How the tokens of a sequence lie on an image; the class token comes after them.

    Attributes:
        rows: Rows of tokens that the image reaches.
        columns: Columns of tokens that the image reaches.
        padded_rows: Rows with those of padding, a multiple of the section's.
        padded_columns: Columns with those of padding.
        section: (height, width) of a section in tokens; None for row order.
    """

    rows: int
    columns: int
    padded_rows: int
    padded_columns: int
    section: tuple[int, int] | None

    def to_map(self, sequence: Tensor) -> Tensor:
        """The tokens `(b, l, c)`, the class token last, as a map `(b, c, rows, columns)`."""
        grid = to_grid(sequence[:, :-1], self.padded_rows, self.padded_columns, self.section)
        grid = take_first(take_first(grid, 1, self.rows), 2, self.columns)
        return grid.permute(0, 3, 1, 2).contiguous()

    def to_sequence(self, x: Tensor) -> Tensor:
        """A map `(b, c, rows, columns)` as a sequence `(b, l, c)`: zeros for padding and class token."""
        padding = (0, 0, 0, self.padded_columns - self.columns, 0, self.padded_rows - self.rows)
        tokens = to_sequence(F.pad(x.permute(0, 2, 3, 1), padding), self.section)
        return F.pad(tokens, (0, 0, 0, 1))


def to_sequence(grid: Tensor, section: tuple[int, int] | None) -> Tensor:
    """Lays out a grid of tokens as one sequence.

    Args:
        grid: `(b, h, w, c)`, h and w multiples of the section's sides.
        section: (height, width) of a section in tokens; None for row order.

    Returns:
        `(b, h·w, c)`.
    """
    if section is None:
        return grid.flatten(1, 2)
    b, h, w, c = grid.shape
    sh, sw = section
    sections = grid.reshape(b, h // sh, sh, w // sw, sw, c).transpose(2, 3)
    return sections.reshape(b, h * w, c)


def to_grid(sequence: Tensor, h: int, w: int, section: tuple[int, int] | None) -> Tensor:
    """The inverse of `to_sequence`: `(b, h·w, c)` back to `(b, h, w, c)`."""
    b, _, c = sequence.shape
    if section is None:
        return sequence.reshape(b, h, w, c)
    sh, sw = section
    sections = sequence.reshape(b, h // sh, w // sw, sh, sw, c).transpose(2, 3)
    return sections.reshape(b, h, w, c)

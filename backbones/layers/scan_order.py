"""In which order a causal backbone reads the tokens of an image.

Row order reads the whole image line by line. The 2D-section scan of De-focus Attention Networks cuts the grid into
sections as large as the pre-training image: the tokens of a section follow one another row by row, and the sections
follow one another row by row, so that a checkpoint sees within each section the order it was trained with.
"""

from torch import Tensor


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

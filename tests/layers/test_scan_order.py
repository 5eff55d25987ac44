import pytest
import torch

from backbones.layers.scan_order import TokenGrid, to_grid, to_sequence


def test_sections_follow_one_another_row_by_row():
    # Token (row, column) is numbered 10·row + column; sections of 2×3 in a grid of 4×6.
    grid = (10 * torch.arange(4)[:, None] + torch.arange(6))[None, :, :, None]
    order = to_sequence(grid, (2, 3)).flatten().tolist()
    assert order == [
        *(0, 1, 2, 10, 11, 12),
        *(3, 4, 5, 13, 14, 15),
        *(20, 21, 22, 30, 31, 32),
        *(23, 24, 25, 33, 34, 35),
    ]


def test_row_order():
    grid = torch.arange(12).reshape(1, 3, 4, 1)
    assert to_sequence(grid, None).flatten().tolist() == list(range(12))


@pytest.mark.parametrize("section", [None, (2, 2), (4, 3), (1, 6), (8, 6)])
def test_inverse(section):
    grid = torch.randn(2, 8, 6, 5)
    assert torch.equal(to_grid(to_sequence(grid, section), 8, 6, section), grid)


@pytest.mark.parametrize("section", [None, (2, 3)])
def test_a_map_goes_to_the_sequence_and_back(section):
    grid = TokenGrid(3, 5, 4, 6, section)
    x = torch.randn(2, 7, 3, 5)
    sequence = grid.to_sequence(x)
    assert sequence.shape == (2, 4 * 6 + 1, 7)
    assert torch.equal(grid.to_map(sequence), x)
    # Padding and the class token, 10 places of 25, got nothing.
    assert (sequence == 0).all(-1).sum(1).tolist() == [10, 10]

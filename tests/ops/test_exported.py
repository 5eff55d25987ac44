"""What exported forms have in common: chunk after chunk by whatever loop a format has."""

import pytest
import torch

from backbones.ops import exported


def step(state, chunk, factor):
    """Neither of what it gives is a view, and the state counts in the output."""
    return state * factor + chunk.sum(1), chunk + state[:, None]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_while_loop_gives_what_python_s_gives(count):
    state, chunks, factor = torch.randn(3, 4), torch.randn(count, 3, 5, 4), torch.rand(4)
    expected = []
    last = state
    for chunk in chunks:
        expected.append(chunk + last[:, None])
        last = last * factor + chunk.sum(1)
    assert torch.equal(exported._while_chunks(step, state, chunks, [factor]), torch.stack(expected))
    assert torch.equal(exported.over_chunks(step, state, chunks, [factor]), torch.stack(expected))


def test_without_a_scan_lasts_as_long_as_it_is_asked_for():
    assert exported.has_scan()
    with pytest.raises(KeyError), exported.without_scan():
        assert not exported.has_scan()
        raise KeyError
    assert exported.has_scan()

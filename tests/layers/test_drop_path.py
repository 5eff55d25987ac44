import pytest
import torch

from backbones.layers.drop_path import DropPath, drop_path_rates


def test_drops_whole_samples_and_keeps_the_mean():
    out = DropPath(0.25)(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] > 0
    assert torch.equal(out, torch.where(kept, 1 / 0.75, 0.0)[:, None, None].expand_as(out))
    assert abs(out.mean().item() - 1) < 0.05


def test_a_dropped_sample_stays_finite():
    out = DropPath(0.5)(torch.full((100, 1), float("inf")))
    assert set(out.flatten().tolist()) == {0.0, float("inf")}


def test_nothing_in_eval():
    x = torch.randn(8, 3)
    assert DropPath(0.9).eval()(x) is x


def test_rates_rise_linearly():
    assert drop_path_rates(0.6, 4) == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert drop_path_rates(0.6, 1) == [0.0]


def test_bad_probability():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        DropPath(1.0)

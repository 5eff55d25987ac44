"""bf16 or fp32: what was measured decides."""

import time

import pytest
import torch

from backbones import precision


@pytest.mark.parametrize(("bf16", "chosen"), [(0.004, True), (0.0095, False), (0.02, False)])
def test_bf16_is_chosen_where_it_was_measured_to_be_faster(monkeypatch, bf16, chosen):
    monkeypatch.setattr(precision, "time_block", lambda: (0.01, bf16))
    faster, said = precision.choose_bf16()
    assert faster is chosen
    assert f"{bf16 / 0.01:.2f} times as long in bf16 as in fp32" in said


def test_a_block_is_timed_in_both_precisions(monkeypatch):
    """One that sleeps, longer in bf16, has the times that it sleeps."""

    class Sleeper(torch.nn.Module):
        def __init__(self, arch):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, tokens):
            time.sleep(0.06 if torch.is_autocast_enabled("cpu") else 0.02)
            return tokens * self.scale

    monkeypatch.setattr(precision, "MambaBlock", Sleeper)
    fp32, bf16 = precision.time_block(budget=0.1)
    assert 0.02 <= fp32 < bf16 and bf16 >= 0.06

"""The filters that heads start with, against the published numbers."""

import math

import pytest
import torch

from backbones.layers.bandpass import Bandpass


def test_half_lives_run_from_22_to_355_tokens():
    decay, _ = Bandpass(5, 2)()
    # e^λ as RetNet has it: 1 - 2^-5 to 1 - 2^-9 in even steps of the exponent.
    torch.testing.assert_close(decay.exp(), 1 - 2.0 ** -torch.arange(5.0, 10.0))
    half_lives = math.log(0.5) / decay
    assert half_lives[[0, -1]].tolist() == pytest.approx([21.83, 354.5], rel=1e-3)


def test_frequencies_are_those_of_rotary_embeddings():
    _, freq = Bandpass(3, 8)()
    torch.testing.assert_close(freq, torch.tensor([1.0, 0.1, 0.01, 0.001]).expand(3, 4))


def test_a_decay_is_negative_whatever_is_learned():
    bandpass = Bandpass(3, 4)
    with torch.no_grad():
        bandpass.log_rate.copy_(torch.tensor([-20.0, 0.0, 3.0]))
    torch.testing.assert_close(bandpass()[0], -torch.tensor([2.0611537e-09, 1.0, 20.085537]))


def test_a_16_bit_model_has_its_filters_in_fp32():
    bandpass = Bandpass(12, 64).bfloat16()
    decay, freq = bandpass()
    assert decay.dtype == freq.dtype == torch.float32
    # λ̂ is rounded, λ = -exp(λ̂) is not once more.
    torch.testing.assert_close(decay.double(), -bandpass.log_rate.double().exp(), rtol=1e-6, atol=0)

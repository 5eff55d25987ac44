"""The bandpass filter that the paper describes, measured through each family's operation.

An impulse enters at token 0; what comes out at token t is e^{λt} e^{iθt}, and its spectrum must be the published
|H(ω)| = 1/|λ| · 1/sqrt(1 + ((ω - θ)/λ)²). That is for continuous time: with a slow decay and small frequencies the sum
over tokens (the first counted half, as in the trapezoidal rule) comes within two per cent of it.
"""

import math

import pytest
import torch

from backbones.ops import decay_attention, defocus_scan, retention

DECAY, FREQ, LENGTH = -0.05, 0.3, 400
F64 = torch.float64


def response_of_scan(backend):
    """Channel 0 is the filter; channel 1 keeps a constant 1, so that the norm over both cancels in their ratio."""
    l, d, n = LENGTH, 2, 4
    u = torch.zeros(1, l, d, dtype=F64)
    u[0, 0] = 1
    step_of_one = math.log(math.expm1(1.0))
    A = torch.tensor([[DECAY, DECAY, -1e3, -1e3], [-1e3, -1e3, -1e-12, -1e-12]], dtype=F64)
    B = torch.zeros(1, l, n, dtype=F64)
    B[0, 0] = torch.tensor([1, 0, 1, 0])
    freq = torch.tensor([FREQ, FREQ, 0, 0], dtype=F64)
    parts = []
    for reading in ([1, 0, 1, 0], [0, -1, 1, 0]):
        C = torch.tensor(reading, dtype=F64).expand(1, l, n)
        ones = torch.ones(1, l, d, dtype=F64)
        zeros = torch.zeros(d, dtype=F64)
        dt = step_of_one * ones
        y = defocus_scan(u, dt, A, B, C, zeros, ones, freq, zeros, norm_group_dims=d, backend=backend)[0]
        parts.append(y[:, 0] / y[:, 1])
    # At token 0 the other pair of states is there, too.
    parts[0][0], parts[1][0] = 1.0, 0.0
    return torch.complex(*parts)


def impulse_heads():
    q = torch.zeros(1, LENGTH, 2, 2, dtype=F64)
    q[:, :, 0, 0], q[:, :, 1, 1] = 1, 1  # one head reads the real part, the other the imaginary one
    k = torch.zeros(1, LENGTH, 2, 2, dtype=F64)
    k[:, 0, :, 0] = 1
    v = torch.zeros(1, LENGTH, 2, 1, dtype=F64)
    v[:, 0] = 1
    return q, k, v, torch.full((2,), DECAY, dtype=F64), torch.full((2, 1), FREQ, dtype=F64)


def response_of_retention(backend):
    y = retention(*impulse_heads(), backend=backend)[0, :, :, 0]
    return torch.complex(y[:, 0], -y[:, 1])


def response_of_attention(backend):
    """The t keys besides the impulse have logit 0, so that its share is e^a / (e^a + t): solved for its logit a."""
    share = decay_attention(*impulse_heads(), backend=backend)[0, 1:, :, 0]
    t = torch.arange(1, LENGTH, dtype=F64)[:, None]
    logit = torch.log(share * t / (1 - share)) * 2**0.5
    return torch.complex(
        torch.cat((torch.ones(1, dtype=F64), logit[:, 0])), torch.nn.functional.pad(-logit[:, 1], (1, 0))
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("response", [response_of_scan, response_of_retention, response_of_attention])
def test_published_frequency_response(response, backend):
    impulse = response(backend)
    impulse[0] /= 2
    omega = torch.linspace(FREQ - 0.35, FREQ + 0.35, 41, dtype=F64)
    t = torch.arange(LENGTH, dtype=F64)
    spectrum = (impulse * torch.exp(-1j * omega[:, None] * t)).sum(-1).abs()
    published = 1 / abs(DECAY) / torch.sqrt(1 + ((omega - FREQ) / DECAY) ** 2)
    assert ((spectrum - published).abs() / published).max() < 0.02
    assert omega[spectrum.argmax()].item() == pytest.approx(FREQ)

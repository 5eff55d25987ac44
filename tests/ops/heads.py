"""Inputs and comparison shared by the tests of attention and retention."""

import torch

from backbones.layers.bandpass import initial_freq, initial_log_rate
from tests.testing import TOLERANCE, assert_close, skip_reason

NAMES = ("q", "k", "v", "decay", "freq")


def inputs(b, l, h=3, k=8, v=12, dtype=torch.float32):
    """q, k, v, λ and θ; λ and θ with the spread of their initial values, disturbed."""
    decay = -initial_log_rate(h).exp() * torch.rand(h).add(0.5)
    freq = initial_freq(h, k) * torch.rand(h, k // 2).add(0.5)
    q, k, v = (torch.randn(b, l, h, width).to(dtype) for width in (k, k, v))
    return [q, k, v, decay, freq]


def limit(dtype, length, device):
    """The largest error allowed: on the CPU two to ten times what is made; of GPUs no such figures are at hand."""
    if dtype == torch.float32:
        # Angles are fp32, too, and the wronger the later the token.
        return TOLERANCE[dtype] + 1.5e-7 * length if device == "cpu" else 2e-4
    # Products of 16-bit matrices are rounded on the way; λ's and θ's gradients are sums of terms that cancel.
    return 5e-2 if dtype == torch.bfloat16 or device == "cuda" else TOLERANCE[dtype]


def check(operation, values, device, backend):
    """Output and all gradients of a backend against `reference` in float64."""
    leaves = [x.double().requires_grad_() for x in values]
    expected = operation(*leaves, backend="reference")
    weight = torch.randn(expected.shape)
    expected_grads = torch.autograd.grad((expected * weight.double()).sum(), leaves)
    leaves = [x.detach().to(device).requires_grad_() for x in values]
    out = operation(*leaves, backend=backend)
    assert out.dtype == values[0].dtype
    tolerance = limit(values[0].dtype, values[0].shape[1], device)
    assert_close(out, expected, "output", tolerance)
    grads = torch.autograd.grad((out * weight.to(device)).sum(), leaves)
    for name, actual, grad, leaf in zip(NAMES, grads, expected_grads, leaves):
        assert actual.dtype == leaf.dtype
        # The floor: one token has no distance, so that λ and θ have no gradient but rounding errors.
        assert_close(actual, grad, f"gradient of {name}", tolerance, floor=0.2)


def running(operation, reference=False):
    """(device, backend) of all that can run here, the others marked with their reason; the definition on request."""
    import pytest

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [
        pytest.param(
            device,
            name,
            id=f"{device}-{name}",
            marks=[] if (reason := skip_reason(backend, device)) is None else pytest.mark.skip(reason=reason),
        )
        for device in devices
        for name, backend in operation.backends.items()
        if reference or name != "reference"
    ]

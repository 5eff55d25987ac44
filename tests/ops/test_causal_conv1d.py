"""Every backend of the causal convolution against an explicit sum in float64."""

import pytest
import torch

from backbones.ops import causal_conv1d_silu
from backbones.ops.causal_conv1d import CAUSAL_CONV1D
from tests.testing import assert_close, skip_reason

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
RUNNING = [
    pytest.param(
        device,
        name,
        id=f"{device}-{name}",
        marks=[] if (reason := skip_reason(backend, device)) is None else pytest.mark.skip(reason=reason),
    )
    for device in DEVICES
    for name, backend in CAUSAL_CONV1D.backends.items()
]


def definition(x, weight, bias):
    """SiLU(bias + Σ_j weight_j x_{t-k+1+j}), written out."""
    k = weight.shape[-1]
    out = torch.zeros_like(x) + bias
    for j in range(k):
        back = k - 1 - j
        shifted = torch.zeros_like(x)
        shifted[:, back:] = x[:, : x.shape[1] - back]
        out = out + weight[:, 0, j] * shifted
    return out / (1 + torch.exp(-out))


# The fourth has more channels than any kernel takes at once.
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 5, 4), (2, 3, 33, 4), (3, 130, 64, 4), (2, 70, 300, 4), (2, 65, 48, 3), (1, 1000, 40, 2)], ids=str
)
@pytest.mark.parametrize("device, backend", RUNNING)
def test_matches_definition(device, backend, shape, dtype):
    check(shape, dtype, device, backend)


def check(shape, dtype, device, backend):
    """Output and all gradients of a backend, for `(b, l, d, k)`."""
    b, l, d, k = shape
    # Half of a projection's output, as the block hands it over.
    wide = torch.randn(b, l, 2 * d).to(dtype)
    weight, bias = torch.randn(d, 1, k).to(dtype), torch.randn(d).to(dtype)
    loss_weight = torch.randn(b, l, d)
    truth_leaves = [wide.double().requires_grad_(), weight.double().requires_grad_(), bias.double().requires_grad_()]
    expected = definition(truth_leaves[0][..., d:], *truth_leaves[1:])
    expected_grads = torch.autograd.grad((expected * loss_weight.double()).sum(), truth_leaves)

    leaves = [x.to(device).requires_grad_() for x in (wide, weight, bias)]
    out = causal_conv1d_silu(leaves[0][..., d:], *leaves[1:], backend=backend)
    assert out.dtype == dtype
    assert_close(out, expected, "output")
    grads = torch.autograd.grad((out * loss_weight.to(device)).sum(), leaves)
    for name, actual, grad in zip(("x", "weight", "bias"), grads, expected_grads):
        assert_close(actual, grad, f"gradient of {name}")


def test_bad_input():
    with pytest.raises(ValueError, match=r"needs x \(b, l, d\)"):
        causal_conv1d_silu(torch.zeros(1, 2, 3), torch.zeros(4, 1, 4), torch.zeros(4))


def test_devices_have_to_agree():
    with pytest.raises(ValueError, match="x is on cpu, weight on meta, bias on cpu: move them to one device"):
        causal_conv1d_silu(torch.zeros(1, 2, 3), torch.zeros(3, 1, 4, device="meta"), torch.zeros(3))

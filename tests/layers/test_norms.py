import pytest
import torch

from backbones.layers.norms import LayerNorm, LayerNorm2d, RMSNorm
from tests.testing import assert_close


def _randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_rms_norm():
    norm = _randomised(RMSNorm(12))
    x = torch.randn(3, 5, 12)
    truth = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    assert_close(norm(x), truth)


def test_layer_norm_2d_is_over_channels():
    norm = _randomised(LayerNorm2d(6))
    x = torch.randn(2, 6, 4, 3).double()
    centred = x - x.mean(1, keepdim=True)
    truth = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    truth = truth * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    assert_close(norm(x.float()), truth)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_statistics_of_a_16_bit_model_are_fp32(kind):
    # The squares overflow fp16, and bf16 has too few digits for their mean.
    norm = kind(256).half()
    out = norm(torch.randn(2, 256) * 1000)
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    assert abs(out.float().square().mean().item() - 1) < 0.02

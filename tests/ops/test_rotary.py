"""The phase of attention and retention, which all their backends share, against complex numbers."""

import cmath

import pytest
import torch

from backbones.ops.rotary import rotate_pairs


@pytest.mark.parametrize("rope_scale, first", [(1.0, 0), (4.0, 0), (0.5, 0), (1.0, 3), (4.0, 3)])
def test_each_pair_is_multiplied_by_its_phase(rope_scale, first):
    b, l, h, k = 2, 5, 3, 4
    x, freq = torch.randn(b, l, h, k, dtype=torch.float64), torch.rand(h, k // 2, dtype=torch.float64)
    out = rotate_pairs(x, freq, rope_scale, first)
    for sample, t, head, pair in ((0, 0, 0, 0), (1, 4, 2, 1), (0, 3, 1, 1), (1, 1, 0, 0)):
        number = complex(*x[sample, t, head, 2 * pair : 2 * pair + 2])
        turned = number * cmath.exp(1j * freq[head, pair].item() * (first + t) / rope_scale)
        assert complex(*out[sample, t, head, 2 * pair : 2 * pair + 2]) == pytest.approx(turned)


def test_a_literal_angle():
    # Position 3 at a scale of 2 and half a radian a position: 0.75 radians.
    x = torch.tensor([1.0, 0.0]).expand(1, 4, 1, 2)
    out = rotate_pairs(x, torch.tensor([[0.5]]), rope_scale=2.0)
    torch.testing.assert_close(out[0, 3, 0], torch.tensor([0.7316889, 0.6816388]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_positions_of_16_bit_inputs_are_exact(dtype):
    """bf16 has no 257 and fp16 no 2049: neighbours would share an angle."""
    x = torch.tensor([1.0, 0.0], dtype=dtype).expand(1, 4097, 1, 2)
    out = rotate_pairs(x, torch.tensor([[1.0]], dtype=dtype))
    assert out.dtype == dtype
    t = torch.arange(4097, dtype=torch.float64)
    expected = torch.stack((t.cos(), t.sin()), -1)
    assert (out[0, :, 0].double() - expected).abs().max() < torch.finfo(dtype).eps

import pytest
import torch

from backbones.ops import deformable_attention
from tests.testing import assert_close

SHAPES = [(5, 7), (3, 4), (1, 1)]


def inputs(dtype=torch.float64, heads=3, width=5):
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, heads, width, dtype=dtype)
    # Some points lie beyond the edges.
    locations = torch.rand(2, 11, heads, len(SHAPES), 4, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 11, heads, len(SHAPES), 4, dtype=dtype)
    return [t.requires_grad_() for t in (value, locations, weights)]


def run(backend, value, locations, weights):
    return deformable_attention(value, SHAPES, locations, weights, backend=backend)


def test_a_point_on_a_pixel_reads_that_pixel():
    value = torch.randn(1, 12, 1, 2, dtype=torch.float64)
    y, x = 2, 1
    location = torch.tensor([(x + 0.5) / 4, (y + 0.5) / 3], dtype=torch.float64)
    for backend in ("reference", "torch"):
        out = deformable_attention(
            value, [(3, 4)], location.expand(1, 1, 1, 1, 1, 2), value.new_ones(1, 1, 1, 1, 1), backend=backend
        )
        torch.testing.assert_close(out[0, 0], value[0, y * 4 + x, 0])


def test_between_pixels_and_beyond_the_edge():
    value = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    # Between both pixels of a 1×2 map; on its right edge, half way to the zeros beyond; far outside.
    x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).reshape(1, 3, 1, 1, 1, 2)
    for backend in ("reference", "torch"):
        out = deformable_attention(value, [(1, 2)], locations, value.new_ones(1, 3, 1, 1, 1), backend=backend)
        assert out.flatten().tolist() == pytest.approx([2.0, 1.5, 0.0])


def test_output_and_gradients_equal_the_definition():
    expected_inputs, actual_inputs = inputs(), None
    actual_inputs = [t.detach().clone().requires_grad_() for t in expected_inputs]
    expected, actual = run("reference", *expected_inputs), run("torch", *actual_inputs)
    assert_close(actual, expected, "output")
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    for name, a, b in zip(("value", "locations", "weights"), actual_inputs, expected_inputs):
        assert_close(a.grad, b.grad, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    value, locations, weights = (t.detach() for t in inputs())
    expected = run("reference", value, locations, weights)
    actual = run("torch", value.to(dtype), locations.float(), weights.float())
    assert actual.dtype == dtype
    assert_close(actual, expected, tolerance=1e-2 if dtype == torch.bfloat16 else None)


def test_agrees_with_mmcv():
    operators = pytest.importorskip("mmcv.ops.multi_scale_deform_attn", reason="mmcv's operators are not installed")
    value, locations, weights = (t.detach() for t in inputs(torch.float32))
    expected = operators.multi_scale_deformable_attn_pytorch(value, torch.tensor(SHAPES), locations, weights)
    assert_close(run("torch", value, locations, weights), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmcv's kernel needs a GPU")
def test_mmcv_kernel():
    pytest.importorskip("mmcv", reason="mmcv is not installed")
    tensors = [t.detach().cuda().float().requires_grad_() for t in inputs(width=8)]
    expected = run("reference", *(t.detach().double() for t in tensors))
    actual = run("mmcv", *tensors)
    assert_close(actual, expected)
    actual.sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_bad_shapes_are_named():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="needs value"):
        deformable_attention(value[:, 1:], SHAPES, locations, weights)
    with pytest.raises(RuntimeError, match="runs on CUDA"):
        run("mmcv", value, locations, weights)

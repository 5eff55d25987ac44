import pytest
import torch

from backbones.ops import deformable_attention
from backbones.ops.deformable_attention import DEFORMABLE_ATTENTION
from tests.testing import assert_close, needs_library

SHAPES = [(5, 7), (3, 4), (1, 1)]
FAST = ["torch", pytest.param("cpu", marks=needs_library)]


def inputs(dtype=torch.float64, heads=3, width=5):
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, heads, width, dtype=dtype)
    # Some points lie beyond the edges.
    locations = torch.rand(2, 11, heads, len(SHAPES), 4, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, 11, heads, len(SHAPES), 4, dtype=dtype)
    return [t.requires_grad_() for t in (value, locations, weights)]


def run(backend, value, locations, weights):
    return deformable_attention(value, SHAPES, locations, weights, backend=backend)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_point_on_a_pixel_reads_that_pixel(backend):
    value = torch.randn(1, 12, 1, 2, dtype=torch.float64)
    y, x = 2, 1
    location = torch.tensor([(x + 0.5) / 4, (y + 0.5) / 3], dtype=torch.float64).expand(1, 1, 1, 1, 1, 2)
    out = deformable_attention(value, [(3, 4)], location, value.new_ones(1, 1, 1, 1, 1), backend=backend)
    torch.testing.assert_close(out[0, 0], value[0, y * 4 + x, 0])


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_between_pixels_and_beyond_the_edge(backend):
    value = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    # Between both pixels of a 1×2 map; on its right edge, half way to the zeros beyond; outside; absurdly far.
    x = torch.tensor([0.5, 1.0, 2.0, -1e300], dtype=torch.float64)
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).reshape(1, 4, 1, 1, 1, 2)
    out = deformable_attention(value, [(1, 2)], locations, value.new_ones(1, 4, 1, 1, 1), backend=backend)
    assert out.flatten().tolist() == pytest.approx([2.0, 1.5, 0.0, 0.0])


# No multiple of any vector's lanes, one that several fill, and both.
@pytest.mark.parametrize("width", [5, 32, 43])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_output_and_gradients_equal_the_definition(backend, dtype, width):
    expected_inputs = inputs(width=width)
    # A view whose tokens are not side by side, as a slice of a wider projection is.
    wide = torch.cat([expected_inputs[0].detach()] * 2, -1).to(dtype)
    actual_inputs = [wide[..., :width], *(t.detach().to(dtype) for t in expected_inputs[1:])]
    actual_inputs = [t.requires_grad_() for t in actual_inputs]
    expected, actual = run("reference", *expected_inputs), run(backend, *actual_inputs)
    assert_close(actual, expected, "output")
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight.to(dtype)).sum().backward()
    for name, a, b in zip(("value", "locations", "weights"), actual_inputs, expected_inputs):
        assert_close(a.grad, b.grad, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_lower_precision(backend, dtype):
    value, locations, weights = (t.detach() for t in inputs())
    expected = run("reference", value, locations, weights)
    actual = run(backend, value.to(dtype), locations.float(), weights.float())
    assert actual.dtype == dtype
    assert_close(actual, expected)


@needs_library
def test_compiled_backend_is_what_a_cpu_gets(monkeypatch):
    monkeypatch.delenv(DEFORMABLE_ATTENTION.environment, raising=False)
    assert DEFORMABLE_ATTENTION.select("cpu", None).name == "cpu"


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_backend_is_registered_with_torch_library(dtype):
    sides = [side for shape in SHAPES for side in shape]
    operator = torch.ops.defocus.deformable_attention_cpu.default
    value, locations, weights = inputs(dtype)
    torch.library.opcheck(operator, (value, sides, locations, weights))


@needs_library
def test_gradcheck_of_the_compiled_backend():
    leaves = [torch.randn(1, 7, 2, 3), torch.rand(1, 2, 2, 2, 2, 2), torch.rand(1, 2, 2, 2, 2)]
    leaves = [x.double().requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(
        lambda v, *rest: deformable_attention(v, [(2, 3), (1, 1)], *rest, backend="cpu"), leaves
    )


@needs_library
def test_bits_do_not_depend_on_the_threads():
    tensors = inputs(torch.float32, heads=8, width=16)

    def results():
        out = run("cpu", *tensors)
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, results()))
    finally:
        torch.set_num_threads(before)


@needs_library
def test_a_location_that_is_nan_is_not_hidden():
    value, locations, weights = (t.detach() for t in inputs())
    locations[0, 3, 1, 0, 2, 0] = float("nan")
    tensors = [t.requires_grad_() for t in (value, locations, weights)]
    out = run("cpu", *tensors).unflatten(2, (3, -1))
    assert out[0, 3, 1].isnan().all() and out.isnan().sum() == out.shape[3]
    out.sum().backward()
    assert locations.grad[0, 3, 1, 0, 2].isnan().all()


@pytest.mark.parametrize("backend", FAST)
def test_agrees_with_mmcv(backend):
    operators = pytest.importorskip("mmcv.ops.multi_scale_deform_attn", reason="mmcv's operators are not installed")
    value, locations, weights = (t.detach() for t in inputs(torch.float32))
    expected = operators.multi_scale_deformable_attn_pytorch(value, torch.tensor(SHAPES), locations, weights)
    assert_close(run(backend, value, locations, weights), expected)


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


def test_devices_have_to_agree():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="value is on cpu, locations on cpu, weights on meta: move them to one device"):
        run(None, value, locations, weights.to("meta"))

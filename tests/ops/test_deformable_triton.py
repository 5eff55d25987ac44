"""Deformable attention's Triton kernels: in Triton's interpreter, through the compiler, on a GPU where there is one.

The interpreter has to be on before Triton is imported, so `test_in_the_interpreter` runs the tests here called
`test_interpreted_…` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest`` and this file. The sizes are tiny,
for the interpreter takes milliseconds for a line of a kernel.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from backbones.ops import deformable_attention
from backbones.ops.deformable_attention.levels import level_table
from tests.ops.test_dtypes import compare
from tests.ops.triton_runs import INTERPRETED, compile_launches, in_interpreter, interpret, needs_triton, on_gpu
from tests.testing import TOLERANCE, assert_close

MAPS = ((4, 3), (1, 1), (2, 5))
DINO_MAPS = ((100, 134), (50, 67), (25, 34), (13, 17))


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of queries and of pixels, and several turns through the points of a pixel, within few of them."""
    from backbones.ops.deformable_attention import triton_kernels

    monkeypatch.setattr(triton_kernels, "TILE", 32)
    monkeypatch.setattr(triton_kernels, "AT_ONCE", 2)


def inputs(b=2, queries=5, heads=2, width=5, points=1, maps=MAPS):
    """fp32 numbers; some points lie beyond the edges."""
    value = torch.randn(b, sum(h * w for h, w in maps), heads, width)
    locations = torch.rand(b, queries, heads, len(maps), points, 2) * 1.4 - 0.2
    return [value, locations, torch.rand(b, queries, heads, len(maps), points)]


def run(tensors, maps=MAPS, backend="triton"):
    return deformable_attention(tensors[0], maps, *tensors[1:], backend=backend)


def check(tensors, maps=MAPS, device="cpu", tolerance=None):
    """Output and gradients against the definition on the same numbers in float64."""
    doubles = [x.double().requires_grad_() for x in tensors]
    expected = run(doubles, maps, "reference")
    weight = torch.randn(expected.shape).to(tensors[0].dtype)
    expected_grads = torch.autograd.grad(expected, doubles, weight.double())
    leaves = [x.to(device).requires_grad_() for x in tensors]
    out = run(leaves, maps)
    assert out.dtype == tensors[0].dtype
    assert_close(out, expected, "output", tolerance)
    grads = torch.autograd.grad(out, leaves, weight.to(device))
    for name, actual, grad, leaf in zip(("value", "locations", "weights"), grads, expected_grads, leaves):
        assert actual.dtype == leaf.dtype
        assert_close(actual, grad, f"gradient of {name}", tolerance)


@in_interpreter
@pytest.mark.usefixtures("poisoned_memory", "small_tiles")
@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(b=1, queries=1, heads=1, width=1, points=1, maps=((1, 1),)),
        dict(b=1, queries=3, heads=2, width=43, points=1, maps=((2, 3), (1, 5))),
        dict(b=1, queries=9, heads=1, width=8, points=3, maps=((4, 2),)),
    ],
    ids=str,
)
def test_interpreted_equals_the_definition(sizes):
    check(inputs(**sizes), sizes.get("maps", MAPS))


@in_interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_interpreted_in_16_bit(dtype):
    value, locations, weights = (x.to(dtype) for x in inputs(b=1, queries=3))
    # On a pixel the gradient of a place jumps, and 16 bits hit many.
    sides = torch.tensor(MAPS).flip(1)[:, None]
    pixels = locations.float() * sides - 0.5
    locations = torch.where((pixels - pixels.round()).abs() < 1e-3, locations + 2**-6, locations)
    check([value, locations, weights], tolerance=TOLERANCE[torch.bfloat16])


@in_interpreter
# Not bf16: the interpreter cuts its digits off.
@pytest.mark.parametrize("halves", [(0,), (1, 2), (0, 2)], ids=str)
def test_interpreted_rounds_each_tensor_once(halves):
    tensors = inputs(b=1, queries=2)
    compare(lambda *x, backend: run(x, backend=backend), tensors, "cpu", "triton", halves, torch.float16)


@in_interpreter
def test_interpreted_on_and_beyond_the_edges():
    value = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).requires_grad_()
    # Between both pixels of a 1×2 map; on its left and right edges, half way to the zeros beyond; outside, and far.
    x = torch.tensor([0.5, 0.0, 1.0, 2.0, -3.0, 1e30, -3e38, float("inf"), -float("inf")])
    # A quarter of the way from the only row to the zeros below it.
    places = torch.stack([x, torch.full_like(x, 0.75)], -1).reshape(1, -1, 1, 1, 1, 2).requires_grad_()
    weights = torch.ones(1, len(x), 1, 1, 1, requires_grad=True)
    out = run([value, places, weights], ((1, 2),))
    nothing = [0.0] * 6
    assert out.flatten().tolist() == pytest.approx([1.5, 0.375, 1.125, *nothing])
    out.sum().backward()
    # A step along a map of two pixels is worth twice the difference of its neighbours.
    assert places.grad[..., 0].flatten().tolist() == pytest.approx([3.0, 1.5, -4.5, *nothing])
    assert places.grad[..., 1].flatten().tolist() == pytest.approx([-2.0, -0.5, -1.5, *nothing])
    assert weights.grad.flatten().tolist() == pytest.approx([1.5, 0.375, 1.125, *nothing])
    assert value.grad.flatten().tolist() == pytest.approx([0.75, 0.75])


@in_interpreter
def test_interpreted_does_not_hide_a_place_that_is_nan():
    value, locations, weights = inputs()
    locations[0, 3, 1, 0, 0, 0] = float("nan")
    locations[1, 2, 0, 2, 0, 1] = float("nan")
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    out = run(tensors).unflatten(2, (2, -1))
    assert out[0, 3, 1].isnan().all() and out[1, 2, 0].isnan().all() and out.isnan().sum() == 2 * out.shape[3]
    out.sum().backward()
    assert locations.grad[0, 3, 1, 0, 0].isnan().all() and locations.grad[1, 2, 0, 2, 0].isnan().all()
    assert locations.grad.isnan().sum() == 4
    assert value.grad.isfinite().all()


@in_interpreter
@pytest.mark.parametrize("b, queries", [(0, 3), (2, 0), (0, 0)])
def test_interpreted_of_nothing(b, queries):
    tensors = [x.requires_grad_() for x in inputs(b, queries)]
    out = run(tensors)
    assert out.shape == (b, queries, 10)
    out.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in tensors)


@in_interpreter
def test_interpreted_takes_views_and_the_gradient_of_a_sum():
    value, locations, weights = inputs(b=2, queries=2)
    wide = torch.cat([value] * 2, -1)[..., :5]
    turned = locations.transpose(1, 2).contiguous().transpose(1, 2)
    assert not wide.is_contiguous() and not turned.is_contiguous()
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    views = [wide.requires_grad_(), turned.requires_grad_(), weights.clone().requires_grad_()]
    expected = torch.autograd.grad(run(leaves).sum(), leaves)
    for actual, grad in zip(torch.autograd.grad(run(views).sum(), views), expected):
        assert torch.equal(actual, grad)


@in_interpreter
@pytest.mark.usefixtures("small_tiles")
def test_interpreted_all_points_on_one_pixel_repeat_bit_by_bit():
    maps = ((2, 2),)
    value, locations, weights = inputs(b=1, queries=7, heads=1, maps=maps)
    locations = torch.full_like(locations, 0.51)
    check([value, locations, weights], maps)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    first, second = (torch.autograd.grad(run(leaves, maps).square().sum(), leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@in_interpreter
def test_interpreted_operator():
    value, *rest = (x.requires_grad_() for x in inputs(b=1, queries=2, heads=1, maps=((2, 1),)))
    torch.library.opcheck(torch.ops.defocus.deformable_attention_triton.default, (value, [2, 1], *rest))


@in_interpreter
@pytest.mark.parametrize("name", ["value", "locations", "weights"])
def test_interpreted_refuses_float64(name):
    tensors = dict(zip(("value", "locations", "weights"), inputs()))
    tensors[name] = tensors[name].double()
    with pytest.raises(ValueError, match=f'got {name} in torch.float64: cast it, or choose backend="torch"'):
        run(list(tensors.values()))


def compile_kernels(monkeypatch, folder: Path, capability: int, dtype: torch.dtype) -> dict[str, str]:
    """Resources of each kernel at the sizes of DINO's encoder, as the compiler's own tool tells them."""
    import triton

    from backbones.ops.deformable_attention import triton_kernels

    compiled = compile_launches(monkeypatch, folder, capability)
    maps = ((4, 4),) * 4
    tensors = [x.to(dtype) if i == 0 else x for i, x in enumerate(inputs(1, 16, 8, 32, 4, maps))]
    sides = [side for shape in maps for side in shape]
    out = triton_kernels.forward(tensors[0], sides, *tensors[1:])
    triton_kernels.backward(torch.zeros_like(out), tensors[0], sides, *tensors[1:])
    assert {name for name, _ in compiled} == {name for name in vars(triton_kernels) if name.endswith("_kernel")}
    tool, usage = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", {}
    for name, result in compiled:
        cubin = folder / f"{name}.cubin"
        cubin.write_bytes(result.asm["cubin"])
        command = [str(tool), "--dump-resource-usage", str(cubin)]
        usage[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return usage


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
# For 90 in bf16 tests/kernel_report does.
@pytest.mark.parametrize(
    "capability, dtype", [(80, torch.bfloat16), (86, torch.float32), (100, torch.float32)], ids=str
)
def test_compiles_without_spills(capability, dtype, monkeypatch, tmp_path):
    for name, usage in compile_kernels(monkeypatch, tmp_path, capability, dtype).items():
        registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
        assert registers <= 128, f"{name}: {registers} registers leave few programs a multiprocessor"
        assert stack == 0, f"{name} spills: {usage}"


def test_the_table_of_maps_is_made_once_and_may_be_kept_for_backward():
    with torch.inference_mode():
        table = level_table([(2, 3), (1, 4)], torch.device("cpu"))
    assert table.tolist() == [[2, 3, 0, 0], [1, 4, 6, 12]]
    assert not table.is_inference()
    assert level_table(((2, 3), (1, 4)), torch.device("cpu")) is table
    assert level_table([(3, 2), (1, 4)], torch.device("cpu")) is not table


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernels_on_a_gpu(dtype):
    tolerance = 2e-4 if dtype == torch.float32 else TOLERANCE[torch.bfloat16]
    value, *rest = inputs(2, 300, 8, 32, 4)
    check([value.to(dtype), *rest], device="cuda", tolerance=tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2 or INTERPRETED, reason="needs two CUDA GPUs, and the interpreter off")
def test_kernels_on_a_gpu_that_is_not_the_current_one():
    check(inputs(2, 30, 8, 32, 4), device="cuda:1", tolerance=2e-4)


@on_gpu
def test_kernels_in_the_sizes_of_dino_repeat_bit_by_bit_and_wait_for_nothing():
    tensors = inputs(2, sum(h * w for h, w in DINO_MAPS), 8, 32, 4, DINO_MAPS)
    leaves = [x.cuda().requires_grad_() for x in tensors]

    def results():
        out = run(leaves, DINO_MAPS)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    first = results()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = results()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(first, second))


@on_gpu
def test_kernels_in_a_captured_graph():
    leaves = [x.cuda().requires_grad_() for x in inputs(2, 50, 8, 32, 4)]

    def results():
        out = run(leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [x.clone() for x in results()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results()
    for x in captured:
        x.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))

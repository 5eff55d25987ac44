"""What is recorded is what a GPU would have been asked for: launches, bytes and memory, counted by hand."""

import pytest
import torch

from backbones.kernel_report import calls
from backbones.kernel_report.backward import gradients
from backbones.kernel_report.cards import CARDS
from backbones.kernel_report.record import Recorder, autocast
from tests.kernel_report.support import needs_compiler

pytestmark = needs_compiler
H100 = CARDS["sm_90"]


@pytest.fixture
def recorder():
    with Recorder(H100).recording() as recorder:
        yield recorder


def names(recorder):
    return [step.name for step in recorder.steps]


def test_what_makes_no_kernel_run_is_no_step(recorder):
    x = torch.empty(4, 6, device="cuda")
    y = (x.view(6, 4).t()[1:] + 1).mul_(2)
    z = torch.zeros_like(y) @ torch.empty_like(y).t()
    z.detach().unsqueeze(0).expand(3, -1, -1).sum()
    assert names(recorder) == ["add", "mul_", "zeros_like", "mm", "sum"]


def test_bytes_and_operations_of_a_product(recorder):
    (
        torch.empty(30, 20, device="cuda", dtype=torch.bfloat16)
        @ torch.empty(20, 10, device="cuda", dtype=torch.bfloat16)
    )
    (step,) = recorder.steps
    assert (step.flops, step.bytes, step.dtype) == (2 * 30 * 20 * 10, 2 * (30 * 20 + 20 * 10 + 30 * 10), torch.bfloat16)


def test_what_is_repeated_or_only_written_moves_once(recorder):
    x = torch.empty(8, 1, device="cuda")
    x.expand(8, 100) + 1
    torch.empty(50, device="cuda").fill_(3)
    square = torch.empty(5, device="cuda")
    square * square
    assert [step.bytes for step in recorder.steps] == [4 * (8 + 800), 4 * 50, 4 * (5 + 5)]


def test_memory_is_followed_by_storages(recorder):
    one = 4096
    a = torch.empty(1024, device="cuda")
    b = a + 1
    c = b.view(32, 32) + 1
    assert recorder.live_bytes == recorder.peak_bytes == 3 * one
    view = c[3:]
    del b, c
    d = a + view[0, 0]
    assert (recorder.live_bytes, recorder.peak_bytes) == (3 * one, 3 * one)
    del a, d, view
    assert recorder.live_bytes == 0
    recorder.restart()
    assert (recorder.steps, recorder.peak_bytes) == ([], 0)
    torch.empty(1, device="cuda")
    assert recorder.peak_bytes == 512


def test_forward_keeps_what_backward_needs(recorder):
    x = torch.empty(1024, device="cuda", requires_grad=True)
    outputs = [(x.exp() * x.sin()).sum()]
    # exp, sin and the one number; their product is gone.
    assert recorder.live_bytes == 4096 + 2 * 4096 + 512
    grads = gradients(outputs.pop())
    assert [g.shape for g in grads] == [x.shape]
    assert recorder.live_bytes == 4096 + 4096


def test_autocast_casts_as_on_a_gpu(recorder):
    weight = torch.empty(8, 8, device="cuda", requires_grad=True)
    with autocast(torch.bfloat16):
        out = torch.empty(8, 8, device="cuda") @ weight
    assert out.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")


def test_launches_of_a_toy(recorder):
    from tests.kernel_report import toy_kernels

    toy_kernels.repeat(7, 3)
    toy_kernels.triangle(5)
    first, second = (step.launch for step in recorder.steps)
    assert (first.name, first.grid, first.programs) == ("toy_kernels.repeat_kernel", (7, 1, 1), 7)
    assert first.values["rounds"] == 3 and first.tensor_bytes == {"x_ptr": 7 * 512, "out_ptr": 7 * 512}
    assert first.signature == {"x_ptr": "*fp32", "out_ptr": "*fp32", "rounds": "i32", "BLOCK": "constexpr"}
    assert first.options["num_warps"] == 1
    assert second.grid == (5, 1, 1)


def test_alignment_is_that_of_the_view(recorder):
    from tests.kernel_report.toy_kernels import repeat_kernel

    x = torch.empty(1000, device="cuda")
    for start in (0, 4, 1):
        repeat_kernel[(1,)](x[start:], x, 1, BLOCK=128, num_warps=1)
    aligned = [bool(step.launch.attributes[0,]) for step in recorder.steps]
    assert aligned == [True, True, False]


def test_bytes_of_the_convolution():
    call = next(call for call in calls.CALLS if call.name == "causal_conv1d")
    steps, elements = calls.record(call, H100, 2, 100, torch.bfloat16)
    sequence, taps, biases = 2 * 2 * 100 * 1536, 2 * 4 * 1536, 2 * 1536
    assert elements == 2 * 100 * 1536
    forward = next(step for step in steps if step.launch)
    assert forward.bytes == 2 * sequence + taps + biases


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_operation_with_kernels_launches_some_both_ways(dtype):
    for call in filter(calls.has_kernels, calls.CALLS):
        steps, elements = calls.record(call, H100, 1, 300, dtype)
        kernels = [step.launch.kernel for step in steps if step.launch]
        backward = [name for name in kernels if "backward" in name or "gradient" in name]
        assert elements and backward and len(backward) < len(kernels), (call.name, kernels)


def test_launchers_are_answered_by_the_card():
    call = calls.CALLS[0]
    grids = [
        [step.launch.grid for step in calls.record(call, card, 2, 4705, torch.bfloat16)[0] if step.launch]
        for card in (CARDS["sm_86"], H100)
    ]
    # The last pass of backward fills the card, whatever its size.
    assert grids[0] != grids[1]


def test_nothing_is_left_behind():
    from triton.runtime.jit import JITFunction

    before = JITFunction.run, torch.cuda._exchange_device
    with pytest.raises(KeyError), Recorder(H100).recording():
        raise KeyError
    assert (JITFunction.run, torch.cuda._exchange_device) == before
    assert type(torch.empty(1)) is torch.Tensor

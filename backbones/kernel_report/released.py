"""The released way, as far as it can be followed without its packages: their kernels are stand-ins of known cost.

The rest of it runs as it is written in the `mamba_ssm` backends, as plain passes of PyTorch.
"""

import contextlib
import importlib.machinery
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor

from backbones.benchmark.blocks import released_packages
from backbones.kernel_report.record import Recorder, Work
from backbones.ops.dispatch import _operations

# What mamba-ssm's scan compiles to for sm_90 with 16 states: thread instructions a channel-token, registers of a
# thread, and cycles between two instructions of a warp by a simulation of its code with 12 warps a multiprocessor.
# Backward spills some 500 bytes, and adds 32 gradients of B and C a channel-token by atomics.
_FORWARD = {"instructions": 608, "registers": 168, "cycles": 4.6}
_BACKWARD = {"instructions": 1325, "registers": 168, "cycles": 5.9}
# It computes whole chunks, and keeps two numbers a state for each.
_CHUNK = 2048
# Of causal-conv1d, thread instructions a channel-token: a bound from its arithmetic, a few passes over four taps.
_CONVOLUTION = {"forward": 24, "backward": 64}


def _work(known: dict, b: int, d: int, l: int, n: int) -> Work:
    padded = b * d * -(-l // _CHUNK) * _CHUNK
    return Work(
        instructions=known["instructions"] * n / 16 * padded / 32,
        registers=known["registers"],
        cycles=known["cycles"],
        exponentials=n * padded,
    )


def _stand_ins(recorder: Recorder) -> dict[str, ModuleType]:
    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C):
            (b, d, l), n = u.shape, A.shape[1]
            out = torch.empty_like(u)
            states = torch.empty(b, d, -(-l // _CHUNK), 2 * n, device=u.device)
            recorder.step("mamba_ssm forward", [u, delta, A, B, C, out, states], _work(_FORWARD, b, d, l, n))
            ctx.save_for_backward(u, delta, A, B, C, states)
            return out

        @staticmethod
        def backward(ctx, grad):
            u, delta, A, B, C, states = ctx.saved_tensors
            (b, d, l), n = u.shape, A.shape[1]
            grad = grad if grad.stride(-1) == 1 else grad.contiguous()
            du, ddelta = torch.empty_like(u), torch.empty_like(delta)
            # Atomics add to fp32, which has to be zero before.
            dA = torch.zeros_like(A)
            dB, dC = (torch.zeros_like(x, dtype=torch.float32) for x in (B, C))
            moved = [grad, u, delta, A, B, C, states, du, ddelta, dA, dB, dC]
            recorder.step("mamba_ssm backward", moved, _work(_BACKWARD, b, d, l, n))
            return du, ddelta, dA, dB.to(B.dtype), dC.to(C.dtype)

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            out = torch.empty_like(x)
            recorder.step("causal_conv1d forward", [x, weight, bias, out], _plain(x, "forward"))
            ctx.save_for_backward(x, weight, bias)
            return out

        @staticmethod
        def backward(ctx, grad):
            x, weight, bias = ctx.saved_tensors
            dx = torch.empty_like(x)
            dweight, dbias = (torch.zeros_like(p, dtype=torch.float32) for p in (weight, bias))
            recorder.step("causal_conv1d backward", [grad, x, weight, dx, dweight], _plain(x, "backward"))
            return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)

    def _plain(x: Tensor, direction: str) -> Work:
        return Work(_CONVOLUTION[direction] * x.numel() / 32, registers=64, cycles=4.0, exponentials=x.numel())

    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    vars(interface)["selective_scan_fn"] = lambda *args: Scan.apply(*args)
    convolution = ModuleType("causal_conv1d")
    vars(convolution)["causal_conv1d_fn"] = lambda x, weight, bias, activation: Convolution.apply(x, weight, bias)
    folders = (ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", "selective_scan_cuda"))
    modules = {module.__name__: module for module in (*folders, interface, convolution)}
    for module in modules.values():
        # So they can be imported from, and asked for.
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
    return modules


@contextlib.contextmanager
def released_way(recorder: Recorder, dtype: torch.dtype) -> Iterator[None]:
    """Lets the `mamba_ssm` backends be chosen, on stand-ins that tell ``recorder`` what they cost.

    Args:
        recorder: The one that is at work.
        dtype: What the scan gets its sequences in.
    """
    served = [operation for operation in _operations.values() if "mamba_ssm" in operation.backends]
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, _stand_ins(recorder)))
        stack.enter_context(released_packages(dtype))
        for operation in served:
            # Where the packages are not there, they must not seem to be afterwards.
            stack.enter_context(patch.dict(operation._selected))
        yield

"""A whole Mamba block: what its passes start, keep and need at their peak, ours and the released way."""

import contextlib
from dataclasses import dataclass

import torch

from backbones.kernel_report.backward import gradients
from backbones.kernel_report.calls import PUBLISHED_LENGTH
from backbones.kernel_report.cards import Card
from backbones.kernel_report.record import Recorder, Step, autocast
from backbones.kernel_report.released import released_way
from backbones.mixers.mamba import MambaBlock


@dataclass(frozen=True)
class Trace:
    """One forward and backward pass of a block.

    Attributes:
        name: What it is.
        forward: What forward starts.
        backward: What backward starts.
        kept_bytes: Memory that forward leaves behind, its output with it.
        peak_bytes: Most memory above weights and input, over both passes.
    """

    name: str
    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    kept_bytes: int
    peak_bytes: int

    @property
    def steps(self) -> tuple[Step, ...]:
        """What both passes start, in order."""
        return self.forward + self.backward

    @property
    def moved_bytes(self) -> int:
        """Bytes between memory and the GPU, each tensor of a step counted once."""
        return sum(step.bytes for step in self.steps)


def trace(card: Card, dtype: torch.dtype, released: bool = False, b: int = 2, l: int = PUBLISHED_LENGTH) -> Trace:
    """Follows a base block as `defocus benchmark block` runs it: weights and input fp32, ``dtype`` by autocast.

    Args:
        card: The GPU that launches are cut to.
        dtype: fp32, or what autocast casts to.
        released: Whether the block runs the released way, on stand-ins for its packages.
        b: Images.
        l: Tokens of each.
    """
    with Recorder(card).recording() as recorder:
        arch = MambaBlock.archs["base"]
        with torch.device("cuda"):
            model = MambaBlock(arch, rope_scale=20.0, delta_scale=4.57)
            x = torch.empty(b, l, arch.embed_dims, requires_grad=True)
        recorder.restart()
        before = recorder.live_bytes
        with _way(recorder, dtype, released), autocast(None if dtype == torch.float32 else dtype):
            outputs = [model(x)]
            kept, forward = recorder.live_bytes - before, tuple(recorder.steps)
            # They are there until the end, as they would be for the optimizer.
            grads = gradients(outputs.pop())
        peak = recorder.peak_bytes - before
        backward = tuple(recorder.steps[len(forward) :])
        del grads
    name = f"{'the released way' if released else 'ours'}, {'fp32' if dtype == torch.float32 else 'bf16'}"
    return Trace(name, forward, backward, kept, peak)


def _way(recorder, dtype, released):
    return released_way(recorder, dtype) if released else contextlib.nullcontext()

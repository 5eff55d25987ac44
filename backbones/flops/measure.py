"""Measures a model on one image: FLOPs in both conventions, parameters, activation memory."""

import contextlib
import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from backbones.flops.counter import Counts, FlopCounter
from backbones.flops.memory import KeptForBackward, PeakMemory
from backbones.flops.operators import ELEMENTWISE, MOVES, NORMS
from backbones.flops.shapes import shapes_only

# What runs in operators of these kinds is little beside the products.
GROUPS = (ELEMENTWISE, NORMS, MOVES)


@dataclass(frozen=True)
class Subject:
    """A model and how it looks at one image.

    Attributes:
        model: In evaluation mode.
        run: Shows it an image.
        trained: What is put into training mode to see what a training step keeps; the rest needs ground truth for it.
        functions: Given a counter, a context in which the framework's compiled functions, which no dispatcher shows,
            run on shapes and are listed.
    """

    model: nn.Module
    run: Callable[[], object]
    trained: Sequence[nn.Module]
    functions: Callable[[FlopCounter], contextlib.AbstractContextManager] = contextlib.nullcontext


@dataclass(frozen=True)
class Measurement:
    """What a model costs on one image.

    Attributes:
        flops: A multiply-add counting two.
        macs: Half of them: multiply-adds, what most papers call FLOPs.
        parameters: Numbers in its parameters.
        uncounted: What ran without a formula: `operator` (a group of harmless ones, or a name), `calls`, `elements`.
        by_operator: FLOPs of each operator.
        by_module: FLOPs of each module of the top two levels, those below it among them.
        backends: Backend of each of our operations that ran.
        assumed: Questions for values that were answered with their upper limit, and how often.
        saved_bytes: What autograd keeps of one image for backward, parameters apart.
        peak_bytes: The most that activations take at once without gradients, the image and the parameters apart.
        torch: Its version.
    """

    flops: int
    macs: int
    parameters: int
    uncounted: list[dict]
    by_operator: dict[str, int]
    by_module: dict[str, int]
    backends: dict[str, str]
    assumed: dict[str, int]
    saved_bytes: int
    peak_bytes: int
    torch: str

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def measure(build: Callable[[], Subject]) -> Measurement:
    """Measures what ``build`` makes, on shapes alone: nothing is computed, no weights are held.

    Args:
        build: Makes model and image; runs where all tensors are fake.
    """
    with shapes_only() as limits:
        subject = build()
        counts, peak = count(subject)
        assumed = dict(limits.assumed)
        saved = saved_bytes(subject)
    return Measurement(
        flops=counts.flops,
        macs=counts.flops // 2,
        parameters=sum(p.numel() for p in subject.model.parameters()),
        uncounted=[
            dict(operator=name, calls=entry.calls, elements=entry.elements)
            for name, entry in sorted(counts.uncounted.items(), key=lambda item: (item[0] not in GROUPS, item[0]))
        ],
        by_operator=dict(counts.by_operator.most_common()),
        by_module=_top_modules(subject.model, counts),
        backends=counts.backends,
        assumed=assumed,
        saved_bytes=saved,
        peak_bytes=peak,
        torch=torch.__version__,
    )


def count(subject: Subject) -> tuple[Counts, int]:
    """Counts of one image without gradients, and the peak of its activations in bytes."""
    counter = FlopCounter(subject.model)
    # What hangs in cycles would be gone when the collector happens to run.
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), PeakMemory() as memory, counter, subject.functions(counter):
            subject.run()
    finally:
        gc.enable()
    return counter.counts, memory.peak


def saved_bytes(subject: Subject) -> int:
    """Bytes that autograd keeps of one image."""
    for module in subject.trained:
        module.train()
    # What is new in here is made by the run: an image that the run makes counts as an activation.
    kept = KeptForBackward(itertools.chain(subject.model.parameters(), subject.model.buffers()))
    with torch.enable_grad(), kept, subject.functions(FlopCounter()):
        subject.run()
    subject.model.eval()
    return kept.total


def _top_modules(model: nn.Module, counts: Counts) -> dict[str, int]:
    names = [name for name, _ in model.named_modules() if name and name.count(".") < 2]
    return {name: number for name in names if (number := counts.within(name))}

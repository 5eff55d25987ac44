"""What launchers of kernels ask of a GPU: the one place that asks, so that a report without one can answer instead."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Sizes that launches are cut to.

    Attributes:
        name: As its vendor calls it.
        capability: Compute capability as one number: 90 for 9.0.
        multiprocessors: How many there are.
        l2_bytes: Second-level cache, shared by all of them.
        registers: 32-bit registers of a multiprocessor.
        shared_bytes: Shared memory of a multiprocessor.
        warps: Warps that a multiprocessor can hold at once.
    """

    name: str
    capability: int
    multiprocessors: int
    l2_bytes: int
    registers: int
    shared_bytes: int
    warps: int


# Of Triton's interpreter: so small that a program there gets several items, as it does on a GPU.
INTERPRETER = Gpu(
    "Triton's interpreter", 0, multiprocessors=1, l2_bytes=1, registers=2**16, shared_bytes=2**16, warps=4
)

_pretended: Gpu | None = None


def gpu_of(device: torch.device) -> Gpu:
    """The sizes of the GPU behind ``device``; a device without CUDA is Triton's interpreter."""
    if _pretended is not None:
        return _pretended
    if device.type != "cuda":
        return INTERPRETER
    return _ask(torch.cuda.current_device() if device.index is None else device.index)


def ceil_div(count: int, size: int) -> int:
    """Parts of ``size`` that hold ``count``: on the host, where Triton's own takes longer: kernels call it, too."""
    return -(-count // size)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n ≥ 1."""
    return 1 << (n - 1).bit_length()


def dot_precision(device: torch.device) -> str:
    """How Triton multiplies fp32 matrices on ``device``: no less exactly than fp32 sums are, whatever PyTorch allows.

    Tensor cores know no fp32; three products in TF32 of what a number is rounded to and of what is left come as close
    (relative errors of some 1e-7), in a fraction of the time of the plain lanes. GPUs without TF32 have only these.
    """
    return "tf32x3" if torch.version.hip is None and gpu_of(device).capability >= 80 else "ieee"


@contextlib.contextmanager
def pretended(gpu: Gpu) -> Iterator[None]:
    """Answers `gpu_of` with ``gpu`` whatever the device: for launches that are recorded, not run."""
    global _pretended
    before, _pretended = _pretended, gpu
    try:
        yield
    finally:
        _pretended = before


@functools.cache
def _ask(index: int) -> Gpu:
    found = torch.cuda.get_device_properties(index)
    return Gpu(
        name=found.name,
        capability=10 * found.major + found.minor,
        multiprocessors=found.multi_processor_count,
        l2_bytes=found.L2_cache_size,
        # torch's stubs do not know of it.
        registers=found.regs_per_multiprocessor,  # type: ignore[attr-defined]
        # Older releases of torch do not say; no GPU that Triton serves has less.
        shared_bytes=getattr(found, "shared_memory_per_multiprocessor", 2**16),
        warps=found.max_threads_per_multi_processor // found.warp_size,
    )

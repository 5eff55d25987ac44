"""Which precision trains faster on a processor, found by timing a block."""

import time

import torch

from backbones.mixers.mamba import MambaArch, MambaBlock


def choose_bf16() -> tuple[bool, str]:
    """Whether this processor trains faster under bf16 autocast, which takes a second to find out, and why."""
    fp32, bf16 = time_block()
    # bf16 has to earn its lower precision.
    faster = bf16 < 0.9 * fp32
    name = "bf16" if faster else "fp32"
    reason = f"a training step of a block takes {bf16 / fp32:.2f} times as long in bf16 as in fp32"
    return faster, f"Precision: {name}, for {reason}"


def time_block(budget: float = 1.0) -> tuple[float, float]:
    """Times a training step of one block of the demos' size in fp32 and under bf16 autocast, on the CPU.

    Args:
        budget: Seconds for all of it.

    Returns:
        Seconds of the fastest step of each, for a neighbour on the machine makes single ones slow.
    """
    arch = MambaArch(embed_dims=192, inner_dims=384, depth=1, dt_rank=12)
    block = MambaBlock(arch)
    tokens = torch.randn(2, 401, arch.embed_dims)
    times: dict[bool, list[float]] = {False: [], True: []}
    end = time.monotonic() + budget
    while time.monotonic() < end or len(times[True]) < 3:
        for bf16, measured in times.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                block(tokens).sum().backward()
            measured.append(time.perf_counter() - start)
    return min(times[False]), min(times[True])

"""How long a card takes for a step at least, and about: a roofline with every ceiling written out.

A step takes as long as the highest of its ceilings. "memory", "issue", "special functions", "memory instructions" and
"tensor cores" or "product" are what the card can do at best; "simulated" is what the dependences in the machine code
allow the warps that fit on it at once.
"""

from collections.abc import Mapping, Sequence

import torch

from backbones.kernel_report.cards import SCHEDULERS, Card
from backbones.kernel_report.measure import Measured
from backbones.kernel_report.record import Step, Work

# Shares of the data sheet that products of a block's sizes reach, by what is multiplied.
PRODUCT_SHARE = {"bfloat16": 0.45, "tf32": 0.45, "float32": 0.72}
# From the start of one kernel to the start of the next, if both do next to nothing.
LEAST_SECONDS = 2.5e-6

ASSUMPTIONS = (
    "Each tensor of a kernel goes between memory and the GPU once, at the bandwidth of the data sheet; what is read "
    "again comes from the cache.",
    "A scheduler issues one instruction a cycle, one of the special functions (exponentials, reciprocals, conversions) "
    "in 8, one to memory or shuffle in 4; a multiprocessor has four schedulers.",
    "µs ≈ and ms ≈ are simulated in order by the stall counts and scoreboards of the machine code, for as many warps "
    "of a scheduler as fit: a result of memory takes 500 cycles, of shared memory 33, of a shuffle 30, of a special "
    "function or barrier 40. Warps of a program do not wait for each other. Perhaps 30 % off.",
    "Loops are counted by following the PTX of seven programs spread over the grid; branches that depend on data skip.",
    f"Products reach {PRODUCT_SHARE['bfloat16']:.0%} of the data sheet in bf16 and {PRODUCT_SHARE['float32']:.0%} in "
    "fp32, without TF32.",
    f"A kernel takes at least {LEAST_SECONDS * 1e6} µs; PyTorch's own passes are bound by memory, and each of its "
    "operators is one kernel.",
    "The released way is our `mamba_ssm` backend with stand-ins for its kernels: mamba-ssm's scan takes 608 thread "
    "instructions a channel-token forward and 1,325 backward (compiled for sm_90), whole chunks of 2,048 tokens, 168 "
    "registers, and 4.6 and 5.9 cycles an instruction of each of its 12 warps, atomics included (simulated, ± 30 %).",
)


def ceilings(step: Step, card: Card, measured: Mapping[str, Measured]) -> dict[str, float]:
    """Seconds that a step takes by each of its ceilings.

    Args:
        step: Of a trace.
        card: The GPU.
        measured: What launches of Triton kernels cost, by their key.
    """
    found = {"memory": step.bytes / card.bandwidth, "launch": LEAST_SECONDS}
    if step.flops:
        kind = "float32" if step.dtype == torch.float32 else "bfloat16"
        found["product"] = step.flops / (card.flops[kind] * PRODUCT_SHARE[kind])
    if step.work is not None:
        found |= _of_work(step.work, card)
    if step.launch is not None:
        found |= _of_launch(measured[step.launch.key], card)
    return found


def seconds(steps: Sequence[Step], card: Card, measured: Mapping[str, Measured], simulated: bool) -> float:
    """Of all steps one after another, with the ceilings of simulated latency or without."""
    total = 0.0
    for step in steps:
        found = ceilings(step, card, measured)
        total += max(value for name, value in found.items() if simulated or name != "simulated")
    return total


def _of_work(work: Work, card: Card) -> dict[str, float]:
    issue = card.gpu.multiprocessors * SCHEDULERS * card.clock
    resident = card.resident_warps(work.registers, 0, warps=4)
    return {
        "issue": work.instructions / issue,
        "special functions": work.exponentials / 32 * 8 / issue,
        "simulated": work.instructions * work.cycles / (card.gpu.multiprocessors * resident * card.clock),
    }


def _of_launch(found: Measured, card: Card) -> dict[str, float]:
    issue = card.gpu.multiprocessors * SCHEDULERS * card.clock
    return {
        "issue": found.cost.instructions / issue,
        **{name: cycles / issue for name, cycles in found.cost.unit_cycles.items()},
        "tensor cores": found.cost.flops / card.flops["bfloat16"],
        "simulated": found.cost.cycles / card.clock,
    }

"""The GPUs that a report is made for: one of each architecture, by their makers' data sheets."""

from dataclasses import dataclass

from backbones.ops.gpu import Gpu

_REGISTER_STEP = 8
# Registers are handed to the four quarters of a multiprocessor, each with its own scheduler.
SCHEDULERS = 4
# Of each program's shared memory the system keeps 1 KiB.
_SHARED_RESERVED = 1024


@dataclass(frozen=True)
class Card:
    """A GPU and what its data sheet promises.

    Attributes:
        gpu: The sizes that launches are cut to.
        programs: Programs (blocks of threads) that a multiprocessor can hold at once.
        bandwidth: Of its memory, bytes a second.
        clock: Cycles a second that it keeps up under load.
        flops: Of dense matrix products with sums in fp32, operations a second, by what is multiplied: "bfloat16",
            "tf32", "float32" (on its plain lanes).
    """

    gpu: Gpu
    programs: int
    bandwidth: float
    clock: float
    flops: dict[str, float]

    def resident_warps(self, registers: int, shared_bytes: int, warps: int) -> int:
        """Warps of one kernel that a multiprocessor holds at once, however many programs are launched.

        Args:
            registers: Of a thread.
            shared_bytes: Of a program.
            warps: Of a program.
        """
        by_thread = -(-max(registers, 1) // _REGISTER_STEP) * _REGISTER_STEP
        by_registers = SCHEDULERS * (self.gpu.registers // SCHEDULERS // (32 * by_thread)) // warps
        by_shared = self.gpu.shared_bytes // (shared_bytes + _SHARED_RESERVED)
        return min(by_registers, by_shared, self.gpu.warps // warps, self.programs) * warps


def _card(name, capability, multiprocessors, l2_mib, shared_kib, warps, programs, bandwidth, clock, flops):
    gpu = Gpu(name, capability, multiprocessors, l2_mib * 2**20, 2**16, shared_kib * 2**10, warps)
    return Card(gpu, programs, bandwidth, clock, dict(zip(("bfloat16", "tf32", "float32"), flops, strict=True)))


CARDS = {
    f"sm_{card.gpu.capability}": card
    for card in (
        _card("A100 SXM 80 GB", 80, 108, 40, 164, 64, 32, 2.039e12, 1.41e9, (312e12, 156e12, 19.5e12)),
        _card("RTX 3090", 86, 82, 6, 100, 48, 16, 0.936e12, 1.695e9, (71e12, 35.6e12, 35.6e12)),
        _card("H100 SXM", 90, 132, 50, 228, 64, 32, 3.35e12, 1.755e9, (989e12, 494e12, 66.9e12)),
        _card("B200", 100, 148, 126, 228, 64, 32, 8.0e12, 1.85e9, (2250e12, 1125e12, 75e12)),
    )
}

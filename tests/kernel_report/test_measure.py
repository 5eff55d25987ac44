"""What is counted in compiled kernels is what they were written to do."""

import pytest

from backbones.kernel_report.binary import compile_launch
from backbones.kernel_report.cards import CARDS
from backbones.kernel_report.estimate import ceilings
from backbones.kernel_report.measure import measure, measure_all
from backbones.kernel_report.record import Recorder
from tests.kernel_report.support import needs_compiler

pytestmark = needs_compiler
H100 = CARDS["sm_90"]


def recorded(function, *args):
    with Recorder(H100).recording() as recorder:
        function(*args)
        return [step for step in recorder.steps if step.launch]


@pytest.fixture(scope="module")
def toys():
    from tests.kernel_report import toy_kernels

    return toy_kernels


@pytest.mark.parametrize("rounds", [0, 1, 10, 1001])
def test_rounds_of_a_loop(toys, rounds):
    (step,) = recorded(toys.repeat, 6, rounds)
    cost = measure(step.launch, H100).cost
    assert cost.exponentials == 6 * toys.BLOCK * rounds
    assert cost.guessed == 0
    # A warp has 4 of the 128 elements a thread, and at least an exponential each.
    assert cost.instructions >= 6 * 4 * rounds
    assert sum(loop.rounds for loop in cost.loops) == pytest.approx(rounds)


def test_rounds_that_depend_on_the_program(toys):
    (step,) = recorded(toys.triangle, 5)
    cost = measure(step.launch, H100).cost
    assert cost.exponentials == toys.BLOCK * (1 + 2 + 3 + 4 + 5)


def test_a_kernel_without_room_spills(toys):
    (roomy,), (tight,) = recorded(toys.crowded, 255), recorded(toys.crowded, 64)
    roomy, tight = (compile_launch(step.launch, 90) for step in (roomy, tight))
    assert roomy.spill_bytes == 0 and 128 < roomy.registers <= 255
    # 128 numbers of 4 bytes a thread, of which half at most have a register.
    assert tight.spill_bytes >= 64 * 4 and tight.registers <= 64
    assert tight.stack_bytes > 0


def test_what_the_tools_said_is_kept_with_the_kernel(toys, monkeypatch):
    (step,) = recorded(toys.repeat, 6, 2)
    first = compile_launch(step.launch, 90)

    def refuse(*args, **options):
        raise AssertionError("ptxas was asked again")

    monkeypatch.setattr("subprocess.run", refuse)
    assert compile_launch(step.launch, 90) == first


def test_launches_of_one_kind_are_compiled_once(toys):
    steps = recorded(toys.repeat, 6, 2) * 2 + recorded(toys.repeat, 6, 3)
    told = []
    found = measure_all([s.launch for s in steps], H100, workers=1, progress=lambda *what: told.append(what))
    assert found.keys() == {step.launch.key for step in steps} and len(found) == 2
    assert told == [(1, 2, "toy_kernels.repeat_kernel"), (2, 2, "toy_kernels.repeat_kernel")]


def test_ceilings_by_hand(toys):
    programs, rounds = 132 * 64, 1000
    (step,) = recorded(toys.repeat, programs, rounds)
    measured = {step.launch.key: measure(step.launch, H100)}
    found = ceilings(step, H100, measured)
    assert found["memory"] == pytest.approx(2 * 4 * programs * 128 / 3.35e12)
    # 16 exponentials a cycle and multiprocessor.
    assert found["special functions"] == pytest.approx(programs * 128 * rounds / (16 * 132 * 1.755e9), rel=0.01)
    # 32 programs of one warp fit at once: enough to keep the unit busy, in two waves.
    assert 0.95 * found["special functions"] < found["simulated"] < 1.2 * found["special functions"]


@pytest.mark.parametrize(
    "architecture, registers, shared, warps, resident",
    [
        ("sm_90", 255, 0, 1, 8),
        ("sm_90", 232, 128, 1, 8),
        ("sm_90", 139, 1024, 4, 12),
        ("sm_90", 127, 256, 2, 16),
        ("sm_90", 80, 128, 1, 24),
        ("sm_90", 16, 0, 1, 32),
        ("sm_90", 16, 0, 4, 64),
        ("sm_90", 16, 100 * 1024, 4, 8),
        ("sm_90", 255, 0, 16, 0),
        ("sm_86", 32, 0, 4, 48),
        ("sm_86", 32, 60 * 1024, 4, 4),
    ],
)
def test_warps_that_fit(architecture, registers, shared, warps, resident):
    assert CARDS[architecture].resident_warps(registers, shared, warps) == resident

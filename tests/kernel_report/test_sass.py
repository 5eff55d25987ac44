"""Machine code is read as it is printed."""

import pytest

from backbones.kernel_report import sass


def line(address, text, stall=1, writes=7, reads=7, waits=0):
    """An instruction as cuobjdump prints it, with what the hardware goes by."""
    control = stall << 41 | writes << 46 | reads << 49 | waits << 52
    return (
        f"        /*{address:04x}*/                   {text} ;                  /* 0x0000000000007919 */\n"
        f"                                                                   /* 0x{control:016x} */\n"
    )


def program(*lines, end=True):
    text = '\tcode for sm_90a\n\t\tFunction : k\n\t.headerflags\t@"EF_CUDA"\n'
    text += "".join(line(16 * i, *x) if isinstance(x, tuple) else line(16 * i, x) for i, x in enumerate(lines))
    if end:
        last = 16 * len(lines)
        text += line(last, f"BRA {last:#x}") + line(last + 16, "NOP")
    return sass.parse(text)


def test_loops_and_what_is_outside():
    code = program(
        "LDC R1, c[0x0][0x28]",
        "MUFU.EX2 R2, R3",
        "@!P0 LDG.E R4, desc[UR4][R2.64]",
        "@P1 BRA 0x20",
        "STG.E desc[UR4][R2.64], R4",
        "@P0 BRA 0x10",
        "EXIT",
    )
    assert [x.operation for x in code] == ["LDC", "MUFU.EX2", "LDG.E", "BRA", "STG.E", "BRA", "EXIT"]
    outer, inner = sass.loops(code)
    assert [x.operation for x in outer.own] == ["MUFU.EX2", "STG.E", "BRA"]
    assert [x.operation for x in inner.own] == ["LDG.E", "BRA"]
    assert [x.operation for x in sass.outside(code, [outer, inner])] == ["LDC", "EXIT"]
    assert sass.kinds(code) == {"all": 7, "load": 1, "store": 1, "exp2": 1, "shuffle": 0, "product": 0}
    assert sass.busy(code) == {"special functions": 8, "memory instructions": 8}


LOAD, USE = ("LDG.E R4, [R2]", 2, 0), ("FADD R5, R4, R4", 4, 7, 7, 1)


def test_a_warp_alone_waits_for_its_results():
    assert sass.cycles(program(LOAD)) == 2
    assert sass.cycles(program(LOAD, USE)) == 500 + 4
    # The second load waits until its unit is free.
    assert sass.cycles(program(LOAD, LOAD, USE)) == 4 + 500 + 4


def test_warps_fill_the_gaps_of_each_other():
    busy = program(*[("FFMA R1, R1, R1, R1", 4)] * 10)
    # A warp issues every fourth cycle: four of them fill a scheduler, eight take twice as long.
    assert [sass.cycles(busy, warps) for warps in (1, 2, 4, 8)] == pytest.approx([40, 41, 43, 80], abs=4)
    waiting = program(LOAD, USE)
    assert sass.cycles(waiting, 4) < 1.1 * sass.cycles(waiting, 1)


def test_a_unit_serves_one_warp_after_the_other():
    code = program(*[("MUFU.EX2 R4, R2", 1)] * 10)
    # 8 cycles an exponential, and one for the issue of the last.
    assert sass.cycles(code, warps=4, rounds=50) == pytest.approx(4 * 10 * 8, rel=0.1)


def test_a_loop_takes_what_one_more_round_takes():
    # The load is asked for a round ahead: most of its time is over when it is waited for.
    body = program(USE, LOAD, *[("FFMA R1, R1, R1, R1", 10)] * 20)
    assert sass.cycles(body) == 206
    assert sass.cycles(body, rounds=6) == 4 + 500


@pytest.mark.parametrize("counter", range(6))
def test_each_of_the_six_counters(counter):
    code = program(("MUFU.EX2 R4, R2", 1, counter), ("FADD R5, R4, R4", 1, 7, 7, 1 << counter))
    assert sass.cycles(code) == 40 + 1
    other = program(("MUFU.EX2 R4, R2", 1, counter), ("FADD R5, R4, R4", 1, 7, 7, 63 ^ 1 << counter))
    assert sass.cycles(other) == 2


def test_a_store_holds_its_registers_until_they_are_read():
    code = program(("STG.E [R2], R4", 1, 7, 3), ("MOV R4, R5", 1, 7, 7, 1 << 3))
    assert sass.cycles(code) == 12 + 1
    assert sass.cycles(program()) == 0

"""PTX is followed as a GPU would, as far as loops depend on it."""

import pytest

from backbones.kernel_report import ptx

# for (i = 0; i < n; i += 2) { load; for (j = 3 * program; j != 0; j--) exp2 }, written as LLVM does.
NESTED = """
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u32 kernel_param_1
)
.reqntid 32
{
	.reg .pred 	%p<5>;
	.loc	1 3 0                           // a.py:3:0
	ld.param.b32 	%r1, [kernel_param_1];
	mov.u32 	%r2, %ctaid.x;
	mul.lo.s32 	%r3, %r2, 3;
	setp.lt.s32 	%p1, %r1, 1;
	@%p1 bra 	$L__BB0_4;
	mov.b64 	%rd1, 0;
	cvt.s64.s32 	%rd2, %r1;
$L__BB0_1:                              // outer
	// begin inline asm
	mov.u32 %r5, %r6;
	@%p2 ld.global.b32 { %r5 }, [ %rd9 + 0 ];
	// end inline asm
	mov.b32 	%r4, %r3;
	setp.eq.b32 	%p2, %r4, 0;
	@%p2 bra 	$L__BB0_3;
$L__BB0_2:
	ex2.approx.ftz.f32 	%r7, %r5;
	add.s32 	%r4, %r4, -1;
	setp.ne.b32 	%p3, %r4, 0;
	@%p3 bra 	$L__BB0_2;
$L__BB0_3:
	add.s64 	%rd1, %rd1, 2;
	setp.lt.u64 	%p4, %rd1, %rd2;
	@%p4 bra 	$L__BB0_1;
$L__BB0_4:
	ret;
}
"""


# As Triton waits for a copy or a product under way, on a B200: the labels are the assembler's alone.
WAIT = """	// begin inline asm

{
	@!%p7 bra.uni skipWait;
	.reg .pred complete;
	waitLoop:
	mbarrier.test_wait.parity.shared.b64 complete, [%r8], %r9;
	@!complete nanosleep.u32 20;
	@!complete bra.uni waitLoop;
	skipWait:
}
	// end inline asm
"""


def times(text, kind, values, program=0):
    """How often instructions of a kind are run."""
    blocks = ptx.parse(text)
    visits, _ = ptx.counts(blocks, {f"param_{i}": v for i, v in enumerate(values)}, [(program, 0, 0)], (9, 1, 1))
    return sum(block.kinds[kind] * n for block, n in zip(blocks, visits))


@pytest.mark.parametrize("n, program", [(0, 2), (-5, 1), (1, 0), (7, 2), (100, 8)])
def test_nested_loops(n, program):
    rounds = len(range(0, n, 2))
    assert times(NESTED, "load", (4096, n), program) == rounds
    assert times(NESTED, "exp2", (4096, n), program) == rounds * 3 * program


def test_who_waits_goes_on():
    place = "	ex2.approx"
    assert times(NESTED.replace(place, WAIT + place), "exp2", (4096, 7), 2) == 4 * 6
    assert ptx.loops(ptx.parse(NESTED.replace(place, WAIT + place))) == ptx.loops(ptx.parse(NESTED))


def test_loops_are_found_with_the_outer_one_first():
    blocks = ptx.parse(NESTED)
    labels = [
        (blocks[first].label, sum(b.kinds["exp2"] for b in blocks[first : last + 1]))
        for first, last in ptx.loops(blocks)
    ]
    assert labels == [("$L__BB0_1", 1), ("$L__BB0_2", 1)]


def kernel(*lines):
    """A kernel of one parameter; lines that start with $ are labels."""
    body = "\n".join(line if line.startswith("$") else f"\t{line}" for line in lines)
    return f".visible .entry k(\n\t.param .u32 k_param_0\n)\n{{\n{body}\n}}\n"


def test_a_branch_on_data_leads_onwards_and_never_back():
    text = kernel(
        "ld.global.b32 %r1, [%rd1];",
        "setp.ne.b32 %p1, %r1, 0;",
        "@%p1 bra $L__BB0_2;",
        "ex2.approx.f32 %r2, %r1;",
        "$L__BB0_2:",
        "st.global.b32 [%rd1], %r1;",
        "@%p1 bra $L__BB0_2;",
        "ret;",
    )
    assert times(text, "exp2", (1,)) == 0
    assert times(text, "store", (1,)) == 1
    blocks = ptx.parse(text)
    _, on_data = ptx.counts(blocks, {}, [(0, 0, 0)], (1, 1, 1))
    assert [blocks[i].label for i in on_data] == ["$L__BB0_2"]


def test_what_is_read_over_a_known_number_is_unknown():
    text = kernel(
        "mov.b32 %r1, 0;",
        "@%p9 ld.global.v2.b32 { %r0, %r1 }, [ %rd1 + 0 ];",
        "setp.eq.b32 %p1, %r1, 0;",
        "@!%p1 bra $L__BB0_2;",
        "ex2.approx.f32 %r2, %r1;",
        "$L__BB0_2:",
        "ret;",
    )
    # Were %r1 still 0, the branch would not be taken.
    assert times(text, "exp2", (1,)) == 0


@pytest.mark.parametrize(
    "line, truth",
    [
        ("shr.s32 %r3, -8, 1;", -4),
        ("shr.u32 %r3, -8, 1;", 0x7FFFFFFC),
        ("div.s32 %r3, -7, 2;", -3),
        ("rem.s32 %r3, -7, 2;", -1),
        ("mad.wide.s32 %r3, -2, 3, 8589934592;", 8589934586),
        ("mul.hi.s32 %r3, 1073741824, 8;", 2),
        ("mul.wide.u32 %r3, -1, 2;", 8589934590),
        ("bfe.u32 %r3, 182, 2, 3;", 5),
        ("min.s32 %r3, -1, 1;", -1),
        ("min.u32 %r3, -1, 1;", 1),
        ("cvt.u16.u32 %r3, 65537;", 1),
        ("cvt.s64.s32 %r3, -1;", -1),
        ("selp.b32 %r3, 4, 5, %p1;", 4),
        ("selp.b32 %r3, 4, 5, %p2;", 5),
        ("and.b32 %r3, 12, 10;", 8),
        ("shl.b32 %r3, 3, 33;", 0),
        ("mov.b32 %r3, 0f3F800000;", None),
        ("add.f32 %r3, 1, 1;", None),
    ],
)
def test_arithmetic_of_ptx(line, truth):
    (block,) = ptx.parse(kernel(line))
    ((_, _, operation, operands),) = block.code
    assert ptx._value({"%p1": True, "%p2": False}, {}, operation, operands) == truth


def test_a_program_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(ptx, "_MOST_BLOCKS", 1000)
    loop = ("$L__BB0_1:", "setp.ne.b32 %p1, %r1, 0;", "@%p1 bra $L__BB0_1;", "ret;")
    text = kernel("ld.param.b32 %r1, [k_param_0];", *loop)
    with pytest.raises(RuntimeError, match="still runs after 1001 blocks"):
        times(text, "all", (1,))
    assert times(text, "all", (0,)) == 4


@pytest.mark.parametrize(
    "operation, operations",
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 4096),
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", 2 * 64 * 128 * 16 // 4),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 2 * 2048),
        ("fma.rn.f32", 0),
    ],
)
def test_operations_of_tensor_cores(operation, operations):
    (block,) = ptx.parse(kernel(f"{operation} %r1, %r2, %r3, %r4;"))
    assert block.mma == operations

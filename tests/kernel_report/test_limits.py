"""The kernels as they are keep within their limits; a report says what does not."""

import copy
import json
from pathlib import Path

import pytest

from backbones.kernel_report.limits import REGISTERS_MORE, exceeded, limits
from backbones.kernel_report.report import report
from backbones.kernel_report.tables import markdown, ratios, replace_tables
from tests.kernel_report.support import needs_compiler

pytestmark = needs_compiler
ALLOWED = Path("tests/data/kernel_limits.json")


@pytest.fixture(scope="module")
def found():
    return report("sm_90", ["bf16"], with_sizes=False, with_extremes=False)


def test_kernels_and_block_keep_within_their_limits(found):
    assert exceeded(found, json.loads(ALLOWED.read_text())) == []


def test_nothing_spills(found):
    assert {row["kernel"]: row["spill_bytes"] for row in found["kernels"] if row["spill_bytes"]} == {}


def test_every_loop_is_counted(found):
    guessed = {row["operation"] for row in found["kernels"] if row["guessed_loops"]}
    # How many points fall on a value is known to the data alone, and how many chunks are left of a scan's segment to
    # those that wrote them.
    assert guessed <= {"deformable_attention", "selective_scan"}


def test_a_scan_has_an_exponential_a_state_at_least(found):
    rows = [row for row in found["kernels"] if row["operation"] == "selective_scan"]
    assert sum(row["exponentials_an_element"] for row in rows) > 3 * 16


@pytest.mark.parametrize(
    "what, more, said",
    [
        ("registers", REGISTERS_MORE, None),
        ("registers", REGISTERS_MORE + 1, "and 8 more"),
        ("spill_bytes", 4, "spill_bytes 4, allowed are 0"),
        ("shared_bytes", 1, "shared_bytes"),
        ("resident_warps", -64, "does not fit on a multiprocessor of H100"),
    ],
)
def test_more_than_allowed_is_said(found, what, more, said):
    worse = copy.deepcopy(found)
    worse["kernels"][0][what] += more
    lines = exceeded(worse, limits(found))
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


@pytest.mark.parametrize("what", ["kept_bytes", "peak_bytes", "launches_forward", "launches_backward"])
def test_a_block_that_grows_is_said(found, what):
    worse = copy.deepcopy(found)
    worse["block"][0][what] = int(worse["block"][0][what] * 1.01) + 1
    assert [line for line in exceeded(worse, limits(found)) if f"ours, bf16: {what}" in line]


def test_new_and_lost_kernels_are_said(found):
    fewer = dict(found, kernels=found["kernels"][1:])
    assert "is gone: make the limits anew" in exceeded(fewer, limits(found))[0]
    assert "is new: make the limits anew" in exceeded(found, limits(fewer))[0]


def test_tables_have_a_row_for_each_kernel(found):
    text = markdown([found])
    for row in found["kernels"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['kernel']} | bf16 |"))
        cells = line.split(" | ")
        assert int(cells[2]) == row["registers"] and int(cells[3]) == row["spill_bytes"]
    assert "B200" not in text and "H100" in text


def test_extremes_are_said(found):
    row = found["kernels"][0]
    several = {"extremes": [row], "refused": {"much": "ask for less"}}
    text = markdown([found | several])
    assert "much is refused: ask for less." in text and f"Nothing spills in {row['operation']}." in text
    several["extremes"] = [row | {"spill_bytes": 12}]
    assert f"| {row['operation']} | {row['kernel']} | bf16 | 12 |" in markdown([found | several])


def test_ratios_are_of_the_rows_they_name(found):
    rows = {row["name"]: row for row in found["block"]}
    values = {name: value for name, value, _ in ratios(found)}
    peaks = rows["ours, bf16"]["peak_bytes"], rows["the released way, fp32"]["peak_bytes"]
    assert values["peak memory, ours / the released way in fp32"] == peaks[0] / peaks[1]
    times = rows["the released way, bf16"]["seconds_about"], rows["ours, bf16"]["seconds_about"]
    assert values["time of the released way in bf16 / ours"] == times[0] / times[1]


def test_tables_of_a_page_are_replaced():
    page = "before\n<!-- kernel_report -->\nold\n<!-- /kernel_report -->\nafter\n"
    once = replace_tables(page, r"new \1")
    assert once == "before\n<!-- kernel_report -->\n\nnew \\1\n\n<!-- /kernel_report -->\nafter\n"
    assert replace_tables(once, r"new \1") == once
    with pytest.raises(ValueError, match="add both lines"):
        replace_tables("nothing", "new")

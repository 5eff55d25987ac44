"""What the doctor concludes from checks and times, and how it is written."""

import json
from dataclasses import replace

from backbones.doctor.diagnosis import Diagnosis, conclude
from backbones.doctor.records import Check, Choice, Finding, Speed
from backbones.doctor.report import to_json, to_markdown


def choice(operation="scan", taken="quick", spare=("slow",), variable="SCAN", device="cuda"):
    return Choice(operation, device, variable, taken=taken, spare=list(spare))


def timed(backend, both, operation="scan", dtype="bf16"):
    return Speed(operation, backend, "cuda", "b 1", dtype, forward=both / 3, both=both, peak_bytes=1)


def test_a_backend_slower_than_another_is_named_with_its_variable():
    slow = Diagnosis(choices=[choice()], speeds=[timed("quick", 0.3), timed("slow", 0.2)])
    (finding,) = conclude(slow)
    assert finding.severity == "slow" and slow.status == 0
    assert finding.message == (
        "scan: the backend quick takes 1.50 times as long as slow on cuda (b 1; bf16; forward and backward)"
    )
    assert finding.cure == "set SCAN=slow"
    # A tenth is noise; another dtype, device or operation is another matter.
    assert not conclude(Diagnosis(choices=[choice()], speeds=[timed("quick", 0.22), timed("slow", 0.2)]))
    assert not conclude(Diagnosis(choices=[choice()], speeds=[timed("quick", 0.3), timed("slow", 0.2, dtype="fp32")]))
    assert not conclude(Diagnosis(choices=[choice()], speeds=[timed("quick", 0.3), timed("slow", 0.2, "other")]))
    assert not conclude(Diagnosis(choices=[choice(device="cpu")], speeds=[timed("quick", 0.3), timed("slow", 0.2)]))


def test_a_cure_serves_all_operations_that_the_variable_forces():
    speeds = [timed("quick", 0.3), timed("slow", 0.2)]
    both = [choice(), choice("conv")]
    (finding,) = conclude(Diagnosis(choices=both, speeds=speeds))
    assert finding.cure == "set SCAN=slow (which conv then takes, too)"
    without = [choice(), choice("conv", spare=())]
    (finding,) = conclude(Diagnosis(choices=without, speeds=speeds))
    assert finding.cure == "no setting of SCAN helps; send this page to us"


def test_a_second_gpu_and_a_graph_count_as_checks_of_their_device():
    wrong = Check("scan", "quick", "cuda:1", "b 1", "fp32", error=1.0, worst="output", limit=1e-3)
    graph = Check("scan", "quick", "cuda", "b 1", "fp32", error=0.0, limit=1e-3, graph="wrong: output is off by 1e-1")
    uncaptured = replace(graph, backend="slow", graph="not captured: RuntimeError")
    (finding,) = conclude(Diagnosis(choices=[choice()], checks=[wrong, graph, uncaptured]))
    assert "is wrong on cuda:1 (b 1; fp32): output is off by 1.0e+00" in finding.message
    assert finding.message.endswith(", and 1 more of its checks failed") and finding.cure == "set SCAN=slow"


def test_pages_hold_what_no_table_and_no_json_can():
    check = Check("scan", "a|b", "cpu", "b 1", "fp32", error=float("nan"), worst="output", limit=1.0, same_bits=False)
    page = Diagnosis({"a": "1 | 2"}, [choice()], [check], [], [Finding("note", "a note")])
    assert "| a | 1 \\| 2 |" in to_markdown(page) and "| a\\|b | b 1 | fp32 | **nan, output** |" in to_markdown(page)
    assert json.loads(to_json(page))["checks"][0]["error"] == "nan"

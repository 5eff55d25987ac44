"""The doctor: each kind of fault is put into a backend, found, and named; what is right is left in peace."""

import itertools
from dataclasses import replace

import pytest
import torch

from backbones.benchmark.cases import CASES
from backbones.doctor import checks, surroundings
from backbones.doctor.diagnosis import Diagnosis, choose, conclude, examine
from backbones.doctor.records import Check
from backbones.doctor.report import to_markdown
from backbones.ops import cpu_extension
from backbones.ops.dispatch import Backend, Operation, serves_every_device
from backbones.ops.retention import RETENTION
from backbones.ops.selective_scan import DEFOCUS_SCAN

SIZE = dict(b=1, l=20, h=2, k=4, v=6)
CASE = replace(CASES["retention"], small=(SIZE,), published=dict(cpu=SIZE, cuda=SIZE))


def quiet(text):
    pass


def found(case=CASE):
    """The diagnosis of one operation on a CPU."""
    result = Diagnosis()
    examine({case.operation.name: case}, ["cpu"], quiet, result)
    result.findings += conclude(result)
    return result


@pytest.fixture
def break_backend(monkeypatch):
    """Replaces what the chosen backend of retention runs, given what it ran."""
    monkeypatch.setattr(RETENTION, "_selected", {})

    def change(make, **settings):
        backend = RETENTION.backends["torch"]
        monkeypatch.setitem(RETENTION.backends, "torch", replace(backend, run=make(backend.run), **settings))

    return change


def output_off(run):
    return lambda *arguments: run(*arguments) + 1e-2


def gradient_off(run):
    def off(q, k, v, decay, *rest):
        decay = decay * 1
        if decay.requires_grad:
            decay.register_hook(lambda grad: grad * 1.01)
        return run(q, k, v, decay, *rest)

    return off


def not_a_number(run):
    def off(*arguments):
        out = run(*arguments).clone()
        out[0, 3, 0, 0] = float("nan")
        return out

    return off


def other_shape(run):
    return lambda *arguments: run(*arguments)[:, :, :, :1]


def other_dtype(run):
    return lambda *arguments: run(*arguments).double()


def varying(run):
    counter = itertools.count()
    return lambda *arguments: run(*arguments) * (1 + 2e-6 * (next(counter) % 2))


def raising(run):
    def raise_(*_):
        raise RuntimeError("the kernel  is\nbroken")

    return raise_


@pytest.mark.parametrize(
    "fault, said",
    [
        (output_off, "output is off by "),
        (gradient_off, "gradient of decay is off by "),
        (not_a_number, "output is off by nan"),
        (other_shape, "raised RuntimeError: Mismatch in shape"),
        (other_dtype, "raised TypeError: the output is torch.float64, not torch.float32"),
        (varying, "two runs gave different bits"),
        (raising, "raised RuntimeError: the kernel is broken"),
    ],
)
def test_a_wrong_backend_is_found_and_named_with_the_variable_that_turns_it_off(break_backend, fault, said):
    break_backend(fault)
    result = found()
    assert result.status == 1
    (finding,) = result.findings
    assert finding.severity == "wrong"
    assert finding.message.startswith("retention: the backend torch is wrong on cpu (b 1, l 20, h 2, k 4, v 6; fp32): ")
    assert said in finding.message
    assert finding.cure == "set DEFOCUS_RETENTION_BACKEND=reference"
    assert f"- **Wrong**: {finding.message}. Cure: {finding.cure}." in to_markdown(result)
    # What is wrong is not timed.
    assert "torch" not in {record.backend for record in result.speeds}


def test_right_backends_are_left_in_peace():
    result = found()
    assert result.status == 0 and not result.findings
    assert {check.backend for check in result.checks} == {"torch", "recurrent", "export"}
    assert {check.dtype for check in result.checks} == {"fp32", "bf16", "fp16"}
    assert all(check.same_bits and check.error < check.limit for check in result.checks)
    assert [record.backend for record in result.speeds] == ["torch"]
    assert result.speeds[0].both > 0 and result.speeds[0].forward > 0
    assert "Every backend that runs here does what the definition says." in to_markdown(result)


def test_bits_that_may_differ_by_the_backends_own_word_are_no_fault(break_backend):
    break_backend(varying, may_differ=lambda device: f"sums on {device} come in any order")
    result = found()
    assert result.status == 0 and not result.findings
    assert "differ: sums on cpu come in any order" in to_markdown(result)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_fails_only_when_it_is_timed_is_found_too(break_backend, after):
    def without_gradients(run):
        calls = itertools.count()

        def fail(*arguments):
            if not torch.is_grad_enabled() and not arguments[0].is_meta and next(calls) >= after:
                raise MemoryError("no room")
            return run(*arguments)

        return fail

    break_backend(without_gradients)
    result = found()
    if after == 3:
        # One forward before the turns, two in them.
        assert result.status == 0
        return
    (finding,) = result.findings
    assert result.status == 1 and "the backend torch is wrong on cpu" in finding.message
    assert finding.message.endswith("raised MemoryError: no room where it was timed")
    assert result.speeds[0].both is None and "**raised** MemoryError: no room" in to_markdown(result)


def test_a_definition_that_fails_is_a_finding_too(monkeypatch):
    broken = replace(RETENTION.backends["reference"], run=raising(None))
    monkeypatch.setitem(RETENTION.backends, "reference", broken)
    result = found()
    assert result.status == 1
    assert any("the backend reference is wrong on cpu" in finding.message for finding in result.findings)


def test_where_the_definition_takes_too_much_memory_what_runs_everywhere_is_the_truth(monkeypatch):
    monkeypatch.setattr(checks, "CPU_BYTES", 1)
    truth = checks.find_truth(CASE, SIZE, "cpu")
    assert truth.source == "torch, fp64" and truth.values["output"].dtype == torch.float64
    monkeypatch.undo()
    definition = checks.find_truth(CASE, SIZE, "cpu")
    assert definition.source == "reference, fp64"
    for name, value in truth.values.items():
        torch.testing.assert_close(value, definition.values[name])


def test_a_test_of_a_backend_that_raises_is_a_refusal(monkeypatch):
    def raise_(device):
        raise OSError("libcuda.so is\nof another driver")

    monkeypatch.setitem(RETENTION.backends, "triton", replace(RETENTION.backends["triton"], refusal=raise_))
    choice = choose(RETENTION, "cpu")
    assert choice.refused["triton"] == "its test raised OSError: libcuda.so is of another driver"
    assert "triton" not in {backend.name for backend in checks.runnable(CASE, "cpu")}


def test_what_is_taken_and_why_not_the_others(monkeypatch):
    choice = choose(RETENTION, "cpu")
    assert (choice.taken, choice.spare) == ("torch", ["reference", "recurrent", "export"])
    assert list(choice.refused) == ["triton"] and "need CUDA" in choice.refused["triton"]
    monkeypatch.setenv("DEFOCUS_RETENTION_BACKEND", "recurrent")
    assert choose(RETENTION, "cpu").taken == "recurrent"


def test_a_variable_that_names_what_cannot_run_is_wrong(monkeypatch):
    monkeypatch.setenv("DEFOCUS_RETENTION_BACKEND", "triton")
    result = found()
    assert result.status == 1
    assert "retention cannot run on cpu: RuntimeError: retention: DEFOCUS_RETENTION_BACKEND=" in to_markdown(result)
    assert result.findings[0].cure == "look at DEFOCUS_RETENTION_BACKEND"


def test_a_gpu_that_answers_no_more_ends_its_checks_and_loses_none(break_backend, monkeypatch):
    break_backend(raising)

    def lost(result):
        raise checks.LostDevice

    monkeypatch.setattr(checks, "_probe", lost)
    result = found()
    assert result.status == 1
    assert [check.failure for check in result.checks] == ["RuntimeError: the kernel is broken"]
    assert any("cpu does not answer any more" in finding.message for finding in result.findings)


def test_what_a_captured_graph_gives_is_compared(monkeypatch):
    truth = checks.find_truth(CASE, SIZE, "cpu")
    good = checks.run(CASE, SIZE, truth, "torch", torch.float32)
    result = Check("retention", "torch", "cpu", "", "fp32", limit=1e-3)
    for values, said in (
        (good, "same"),
        ({**good, "gradient of k": good["gradient of k"] * 2}, "wrong: gradient of k"),
    ):
        monkeypatch.setattr(checks, "captured", lambda function, values=values: values)
        checks._check_graph(CASE, SIZE, truth, result)
        assert result.graph.startswith(said)
    monkeypatch.setattr(checks, "captured", raising(None))
    checks._check_graph(CASE, SIZE, truth, result)
    assert result.graph == "not captured: RuntimeError: the kernel is broken" and not result.faults


def test_packages_that_are_broken_or_absent_are_told_apart(tmp_path, monkeypatch, capsys):
    faults = dict(
        broken_package="raise AttributeError('of another\\nversion')",
        ending_package="raise SystemExit(3)",
        whole_package="__version__ = '1.2'; print('welcome')",
        lacking_package="import no_such_thing",
    )
    for name, text in faults.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert surroundings.describe_package("broken_package") == ("installed, AttributeError: of another version", True)
    assert surroundings.describe_package("ending_package") == ("installed, SystemExit: 3", True)
    assert surroundings.describe_package("whole_package") == ("1.2", False)
    text, broken = surroundings.describe_package("lacking_package")
    assert broken and "no_such_thing" in text
    assert surroundings.describe_package("absent_package") == ("not installed", False)
    # What a package prints is no part of the page.
    assert capsys.readouterr() == ("", "welcome\n")


def test_a_compiler_whose_kernels_do_not_build_is_wrong(monkeypatch):
    compiler = cpu_extension.Compiler(("true",), (), "key")
    monkeypatch.setattr(cpu_extension, "compiler", lambda: compiler)
    monkeypatch.setattr(cpu_extension, "refusal", lambda device: "vec.h:3: error")
    monkeypatch.setattr(surroundings, "PACKAGES", {})
    _, findings = surroundings.describe_machine(quiet)
    assert [finding.severity for finding in findings] == ["wrong"] and "vec.h:3: error" in findings[0].message

    def none():
        raise cpu_extension.NoCompiler("no C++ compiler found")

    monkeypatch.setattr(cpu_extension, "compiler", none)
    facts, findings = surroundings.describe_machine(quiet)
    assert [finding.severity for finding in findings] == ["note"]
    assert facts["C++ compiler"] == "none: no C++ compiler found"


def test_an_operation_of_any_backends_is_examined(monkeypatch):
    """No backend is known by its name."""

    def double(q, *_):
        return 2 * q

    operation = Operation(
        "doubling",
        (
            Backend("best", double, serves_every_device),
            Backend("theirs", lambda q, *_: 2.1 * q, lambda device: None, automatic=False),
            Backend("formula", lambda q, *_: q + q, serves_every_device, automatic=False),
        ),
        environment="DOUBLING",
    )
    case = replace(
        CASE,
        operation=operation,
        inputs=lambda size, generator: dict(q=torch.randn(2, 3, generator=generator)),
        call=lambda size, inputs, backend: operation.run(backend, inputs["q"]),
        sequences=("q",),
    )
    result = found(case)
    assert case.definition.name == "formula"
    assert {check.backend: bool(check.faults) for check in result.checks} == {"best": False, "theirs": True}
    assert result.findings[0].cure == "it is not taken here; do not name it in DOUBLING"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_scan_is_examined_with_a_graph():
    size = dict(b=1, l=100, d=64, n=16, norm_group=64)
    case = replace(CASES["defocus_scan"], small=(size,), published=dict(cuda=size))
    results = list(checks.examine(case, "cuda", quiet))
    assert not [check.faults for check in results if check.faults]
    assert {check.graph for check in results if check.backend == choose(DEFOCUS_SCAN, "cuda").taken} >= {"same"}

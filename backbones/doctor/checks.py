"""Runs backends against the definition: output, all gradients, the same bits twice, a captured graph, a second GPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backbones.benchmark.cases import Case, Size, describe, is_definition
from backbones.doctor.records import Check, in_words
from backbones.ops.dispatch import Backend

# Memory that the definition may take on a CPU; on a GPU half of what is free.
CPU_BYTES = 4 << 30
# The least that an error is relative to: where a gradient vanishes there are but rounding errors.
FLOOR = 1e-2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LostDevice(Exception):
    """A kernel has left the GPU in a state in which nothing runs on it any more."""


@dataclass(frozen=True)
class Truth:
    """What the definition makes of a size.

    Attributes:
        inputs: By name, fp32.
        weight: The gradient that is handed to the output.
        values: Output and gradients in float64, by name.
        source: Which backend made them.
    """

    inputs: dict[str, Tensor]
    weight: Tensor
    values: dict[str, Tensor]
    source: str

    def on(self, device: str) -> "Truth":
        """The same with the inputs on another device."""
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return replace(self, inputs=inputs, weight=self.weight.to(device))


def limit(dtype: torch.dtype, length: int) -> float:
    """The largest relative error allowed: ten times what is usual, and small against any mistake.

    Angles are fp32 in some backends, and the wronger the later the token. In 16 bits the gradients of decays and
    phases are sums of rounded terms that cancel: on an H200 plain PyTorch was 7e-2 off after 4,705 tokens.
    """
    return 2e-4 + 2.5e-7 * length if dtype == torch.float32 else 5e-2 + 1e-5 * length


def find_truth(case: Case, size: Size, device: str) -> Truth:
    """The definition in float64, or where it takes too much memory what runs everywhere, in float64 too."""
    affordable = CPU_BYTES
    if device == "cuda":
        torch.cuda.empty_cache()
        affordable = torch.cuda.mem_get_info()[0] // 2
    backend = case.definition if case.definition_bytes(size) <= affordable else case.fallback
    inputs = case.make(size, device)
    shape = case.call(size, {name: x.to("meta") for name, x in inputs.items()}, case.definition.name).shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    truth = Truth(inputs, weight, {}, f"{backend.name}, fp64")
    return replace(truth, values=run(case, size, truth, backend.name, torch.float64))


def run(case: Case, size: Size, truth: Truth, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of a backend, by name, where the inputs of ``truth`` are."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = {
        name: x.detach().to(dtype if name in case.sequences else wide).clone().requires_grad_()
        for name, x in truth.inputs.items()
    }
    out = case.call(size, leaves, backend)
    if out.dtype != dtype:
        raise TypeError(f"the output is {out.dtype}, not {dtype}")
    grads = torch.autograd.grad(out, list(leaves.values()), truth.weight.to(dtype))
    return dict(output=out.detach(), **{f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)})


def compare(actual: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error, NaN before all, and what has it.

    Raises:
        ValueError: A result of another shape.
    """
    worst = (-1.0, "")
    for name, expected in truth.items():
        found, expected = actual[name].double(), expected.to(actual[name].device)
        if found.shape != expected.shape:
            raise ValueError(f"{name} has the shape {tuple(found.shape)} and should have {tuple(expected.shape)}")
        error = ((found - expected).abs().max() / expected.abs().max().clamp_min(FLOOR)).item()
        if error != error:
            return error, name
        worst = max(worst, (error, name))
    return worst


def runnable(case: Case, device_type: str) -> list[Backend]:
    """The backends to try on a device: all that do not refuse, less the definition. One that raises there refuses."""
    found = []
    for backend in case.operation.backends.values():
        try:
            if backend is not case.definition and backend.refusal(device_type) is None:
                found.append(backend)
        except Exception:
            continue
    return found


def examine(case: Case, device: str, say: Callable[[str], None]) -> Iterator[Check]:
    """All checks of an operation on a device type; none is lost where one fails.

    Args:
        case: The operation.
        device: "cpu" or "cuda".
        say: Is told what is done.

    Raises:
        LostDevice: A backend has left the GPU unusable; its check came before.
    """
    for number, size in enumerate(case.small):
        # Another dtype compiles all kernels of a GPU again.
        dtypes = ("fp32",) if number else tuple(DTYPES)
        second = ("cuda:1",) if device == "cuda" and torch.cuda.device_count() > 1 else ()
        yield from _examine_size(case, size, device, "cpu", dtypes, say, second)
    dtypes = ("fp32", "bf16") if device == "cuda" else ("fp32",)
    yield from _examine_size(case, case.published[device], device, device, dtypes, say, large=True)


def _examine_size(case, size, device, truth_device, dtypes, say, second=(), large=False) -> Iterator[Check]:
    say(f"{case.operation.name} on {device}: {describe(size)}")
    blank = Check(case.operation.name, case.definition.name, device, describe(size), "fp64")
    try:
        truth = find_truth(case, size, truth_device)
    except Exception as error:
        yield replace(blank, failure=in_words(error))
        return
    for backend in runnable(case, device):
        if large and is_definition(backend):
            continue
        for place, dtype in [(device, dtype) for dtype in dtypes] + [(place, "fp32") for place in second]:
            result = replace(blank, backend=backend.name, device=place, dtype=dtype, truth=truth.source)
            result.limit = limit(DTYPES[dtype], size.get("l", 0))
            result.may_differ = backend.may_differ(device) or ""
            try:
                _check(case, size, truth, result, with_graph=large and device == "cuda")
            except LostDevice:
                yield result
                raise
            yield result


def _check(case: Case, size: Size, truth: Truth, result: Check, with_graph: bool) -> None:
    """Fills in what a backend does; what it raises is written down, too."""
    try:
        truth = truth.on(result.device)
        first = run(case, size, truth, result.backend, DTYPES[result.dtype])
        result.error, result.worst = compare(first, truth.values)
        second = run(case, size, truth, result.backend, DTYPES[result.dtype])
        result.same_bits = all(torch.equal(first[name], second[name]) for name in first)
    except Exception as error:
        result.failure = in_words(error)
        _probe(result)
    if with_graph and not result.faults:
        _check_graph(case, size, truth, result)


def _check_graph(case: Case, size: Size, truth: Truth, result: Check) -> None:
    """Captures forward and backward in a CUDA graph, clears what it made, and replays it."""
    try:
        values = captured(lambda: run(case, size, truth, result.backend, DTYPES[result.dtype]))
        error, worst = compare(values, truth.values)
        result.graph = "same" if error <= result.limit else f"wrong: {worst} is off by {error:.1e}"
    except Exception as error:
        result.graph = f"not captured: {in_words(error)}"
        _probe(result)


def _probe(result: Check) -> None:
    """Asks after an exception whether the GPU still answers.

    Raises:
        LostDevice: It does not.
    """
    if result.device == "cpu":
        return
    try:
        torch.zeros(1, device=result.device).add_(1).item()
    except Exception as error:
        result.failure = result.failure or result.graph
        result.failure += f"; nothing runs on {result.device} since, and what was left there was not tried"
        raise LostDevice from error


def captured(function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a replayed graph of ``function`` writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = function()
    for value in values.values():
        value.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return {name: value.clone() for name, value in values.items()}

"""Times the backends that are right against each other at the published size."""

from collections.abc import Callable, Collection

import torch

from backbones.benchmark.cases import Case, describe, is_definition
from backbones.benchmark.clock import Row, measure
from backbones.doctor.checks import DTYPES, runnable
from backbones.doctor.records import Speed, in_words

# Turns, and seconds after which no further one begins.
TURNS = {"cpu": 3, "cuda": 20}
SECONDS = 4.0


def time_backends(case: Case, device: str, without: Collection[str], say: Callable[[str], None]) -> list[Speed]:
    """Forward, and forward with backward, of all that run on a device.

    Args:
        case: The operation.
        device: "cpu" or "cuda".
        without: Backends that are not timed, for they were found to be wrong.
        say: Is told what is done.

    Returns:
        A record for each backend and dtype.
    """
    size, speeds = case.published[device], []
    for dtype in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        say(f"{case.operation.name} on {device}: times, {dtype}")
        inputs = case.make(size, device)
        wide = torch.promote_types(DTYPES[dtype], torch.float32)
        leaves = {
            name: x.to(DTYPES[dtype] if name in case.sequences else wide).requires_grad_() for name, x in inputs.items()
        }
        rows = {}
        for backend in runnable(case, device):
            if backend.name in without or is_definition(backend):
                continue
            speed = Speed(case.operation.name, backend.name, device, describe(size), dtype)
            speeds.append(speed)
            try:
                forward, both = _runs(case, size, leaves, backend.name)
                # Before the turns begin, so that what cannot run is in none.
                both()
            except Exception as error:
                speed.failure = in_words(error)
                continue
            rows[backend.name] = (speed, Row(f"{backend.name} forward", forward), Row(f"{backend.name} both", both))
        failure = ""
        try:
            measure([row for _, *pair in rows.values() for row in pair], TURNS[device], device, SECONDS)
        except Exception as error:
            failure = in_words(error)
        for speed, forward, both in rows.values():
            if forward.seconds and both.seconds:
                speed.forward, speed.both, speed.peak_bytes = _seconds(forward), _seconds(both), both.peak_bytes
            else:
                speed.failure = failure
    return speeds


def _seconds(row):
    """Of the GPU itself, where that could be had: launches are waited for by a test, by a network as a rule not."""
    return row.graph_seconds or row.median


def _runs(case, size, leaves, backend):
    """Forward, and forward with backward, as functions to time."""

    def forward():
        with torch.no_grad():
            return case.call(size, leaves, backend)

    weight = torch.ones_like(forward())

    def both():
        return torch.autograd.grad(case.call(size, leaves, backend), list(leaves.values()), weight)

    return forward, both

"""The choice of a backend, without any of the real ones."""

import logging

import pytest
import torch

from backbones.ops import dispatch
from backbones.ops.dispatch import Backend, Operation, serves_every_device, watching


@pytest.fixture
def operation():
    return Operation(
        "dance",
        (
            Backend("fast", lambda: "fast", lambda device: None if device == "cuda" else "needs CUDA"),
            Backend("named", lambda: "named", serves_every_device, automatic=False),
            Backend("plain", lambda: "plain", serves_every_device),
        ),
        environment="DANCE_BACKEND",
    )


def test_first_that_does_not_refuse(operation):
    assert operation.select("cuda").name == "fast"
    assert operation.select("cpu").name == "plain"


def test_choice_and_refusals_are_logged_once(operation, caplog):
    caplog.set_level(logging.INFO, "backbones")
    operation.select("cpu")
    operation.select("cpu")
    assert [record.getMessage() for record in caplog.records] == ["dance on cpu: backend plain (fast: needs CUDA)"]


def test_environment_forces(operation, monkeypatch):
    monkeypatch.setenv("DANCE_BACKEND", "named")
    assert operation.select("cuda").name == "named"
    assert operation.select("cuda", "plain").name == "plain"


def test_forced_backend_that_cannot_run_says_why(operation, monkeypatch):
    monkeypatch.setenv("DANCE_BACKEND", "fast")
    with pytest.raises(RuntimeError, match="DANCE_BACKEND='fast' cannot run on cpu: needs CUDA"):
        operation.select("cpu")


def test_unknown_name_lists_the_known(operation):
    with pytest.raises(ValueError, match="backend='quick' is no backend of dance; there are: fast, named, plain"):
        operation.select("cpu", "quick")


def test_nothing_fits():
    operation = Operation("dance", (Backend("fast", print, lambda device: "needs CUDA"),), "DANCE_BACKEND")
    with pytest.raises(RuntimeError, match=r"no backend serves cpu .*needs CUDA"):
        operation.select("cpu")


def test_a_watcher_runs_every_operation_while_it_is_there():
    seen = []

    def watch(operation, backend, arguments):
        seen.append((operation.name, backend.name, arguments))
        return -backend.run(*arguments)

    operation = Operation("step", (Backend("plain", lambda x, n: x * n, serves_every_device),), "STEP_BACKEND")
    x = torch.tensor(2)
    with pytest.raises(KeyError), watching(watch):
        assert operation.run(None, x, 3) == -6
        raise KeyError
    assert seen == [("step", "plain", (x, 3))]
    assert operation.run(None, x, 3) == 6


@pytest.mark.parametrize(("names", "taken"), [(("cpu", "torch", "export"), "export"), (("cpu", "torch"), "torch")])
def test_an_export_takes_what_is_plain_pytorch(names, taken, monkeypatch):
    backends = [Backend(name, None, serves_every_device, automatic=name != "export") for name in names]
    operation = Operation("walk", backends, environment="WALK_BACKEND")
    assert operation.select("cpu").name == "cpu"
    monkeypatch.setattr(dispatch, "is_exporting", lambda: True)
    assert operation.select("cpu").name == taken
    monkeypatch.setenv("WALK_BACKEND", "cpu")
    assert operation.select("cpu").name == "cpu"

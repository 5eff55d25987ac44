"""What every test starts from: a fixed seed, the repository as working directory, no forced backend, no scope."""

import gc
import os
import sys
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores: with all of them for each, threads that wait for one another take most of the
# time. Said before PyTorch is imported, and so to the programs that tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

ROOT = Path(__file__).resolve().parent.parent
# They find most faults for their time: what stays in a file, or in a folder, goes first. And what would else be waited
# for when all others are done.
FIRST = (
    "tests/test_survival.py::test_a_worker_of_two_agents_is_killed",
    "tests/test_imports.py",
    "tests/test_docs.py",
    "tests/test_commands.py",
    "tests/ops/test_cpu_extension.py",
    "tests/layers",
    "tests/mixers",
    "tests/adapters",
    "tests/checkpoints",
    "tests/analysis/test_numbers.py",
    "tests/analysis/test_recipes.py",
    "tests/test_recipes.py",
)


# Where xdist is not installed nobody knows it.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """A worker more than there are cores: a fifth of the time a worker waits for processes that it has started."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items):
    """Puts `FIRST` at the beginning of what each worker is given: xdist deals consecutive shares of one length.

    All else keeps its order, for what the tests of a file share is made once a worker.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    first = [item for item in items if item.nodeid.startswith(FIRST)]
    last = [item for item in items if not item.nodeid.startswith(FIRST)]
    begin, ordered = 0, []
    for worker in range(workers):
        end = begin + (len(items) - begin) // (workers - worker)
        share = len(first) // (workers - worker)
        ordered += first[:share] + last[: end - begin - share]
        del first[:share], last[: end - begin - share]
        begin = end
    items[:] = ordered


_modules_kept = 0


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    _keep_what_is_imported()
    torch.manual_seed(0)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DEFOCUS_SCAN_BACKEND", raising=False)
    yield
    # The scope in which mmengine looks for names would outlive its test, and another test live on it.
    if "mmengine.registry" in sys.modules:
        sys.modules["mmengine.registry"].DefaultScope._instance_dict.clear()


def _keep_what_is_imported():
    """Takes what imports have made out of the garbage collector's sight, each time that much has been imported.

    The frameworks are a million objects. To look through them takes half a second, and mmengine asks for that with each
    data set.
    """
    global _modules_kept
    if len(sys.modules) > _modules_kept + 200:
        _modules_kept = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture
def poisoned_memory():
    """Fills what `torch.empty` returns with NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

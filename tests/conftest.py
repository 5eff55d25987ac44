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

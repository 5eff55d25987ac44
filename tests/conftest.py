"""What every test starts from: a fixed seed, the repository as working directory, no forced backend, no scope."""

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


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DEFOCUS_SCAN_BACKEND", raising=False)
    yield
    # The scope in which mmengine looks for names would outlive its test, and another test live on it.
    if "mmengine.registry" in sys.modules:
        sys.modules["mmengine.registry"].DefaultScope._instance_dict.clear()


@pytest.fixture
def poisoned_memory():
    """Fills what `torch.empty` returns with NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

"""What every test starts from: a fixed seed, the repository as working directory, no forced backend."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DEFOCUS_SCAN_BACKEND", raising=False)


@pytest.fixture
def poisoned_memory():
    """Fills what `torch.empty` returns with NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

"""What all tests of the doctor run under."""

import pytest

from backbones.benchmark import clock
from backbones.doctor import speed


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """One turn for the clock; this process may have much to look through for what can be freed."""
    monkeypatch.setattr(speed, "TURNS", dict(cpu=1, cuda=1))
    monkeypatch.setattr(clock.gc, "collect", lambda: None)

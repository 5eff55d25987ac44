"""Progress of long work, on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
# Seconds before a bar shows: short work needs none.
DELAY = 1.0


def start_progress(total: int, label: str, unit: str = "img") -> tqdm:
    """A bar to `update` and, as a context, to close."""
    return tqdm(total=total, desc=label, unit=unit, mininterval=0.5, delay=DELAY)


def with_progress(items: Iterable[T], total: int, label: str, unit: str = "img") -> Iterator[T]:
    """Passes ``items`` on and shows how many of ``total`` are done."""
    with start_progress(total, label, unit) as bar:
        for item in items:
            yield item
            bar.update()

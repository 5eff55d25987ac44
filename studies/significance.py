"""What a few seeds can say: means, spreads, and Welch's test of two networks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats


class Summary(NamedTuple):
    """A figure over seeds.

    Attributes:
        mean: Over the seeds.
        spread: Standard deviation of a sample, 0 of one seed.
        values: Each seed's, in the order of the seeds.
    """

    mean: float
    spread: float
    values: tuple[float, ...]


class Comparison(NamedTuple):
    """Two networks, each trained from several seeds.

    Attributes:
        difference: Of the means, the first less the second.
        low: Lower end of the 95 % interval of the difference, None where the seeds do not suffice.
        high: Its upper end.
        p: Of Welch's test, two-sided: how often so large a difference would come of equal networks. None likewise.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of at least one seed."""
    return Summary(fmean(values), stdev(values) if len(values) > 1 else 0.0, tuple(values))


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Welch's test, which lets the two spread differently; it takes two seeds of each, and not all alike."""
    difference = fmean(first) - fmean(second)
    if min(len(first), len(second)) < 2 or len(set(first)) == len(set(second)) == 1:
        return Comparison(difference, None, None, None)
    test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(0.95)
    return Comparison(difference, float(interval.low), float(interval.high), float(test.pvalue))

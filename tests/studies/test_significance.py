"""Statistics over seeds against literals."""

import pytest

from studies.significance import compare, summarise


def test_mean_and_spread():
    summary = summarise([0.5, 0.7, 0.9])
    assert summary.mean == pytest.approx(0.7) and summary.spread == pytest.approx(0.2)
    assert summary.values == (0.5, 0.7, 0.9)
    assert summarise([0.25]) == (0.25, 0.0, (0.25,))


def test_welch_of_equal_spreads():
    """Difference 2, standard error √(2/3), t = 2.449 with 4 degrees of freedom: p = 0.0705, from a table of t."""
    found = compare([3, 4, 5], [1, 2, 3])
    assert found.difference == 2
    assert found.p == pytest.approx(0.0705, abs=1e-4)
    # t at 97.5 % with 4 degrees of freedom is 2.776.
    assert (found.low, found.high) == pytest.approx((2 - 2.776 * (2 / 3) ** 0.5, 2 + 2.776 * (2 / 3) ** 0.5), abs=1e-3)


def test_welch_lets_the_spreads_differ():
    """Variances 1 and 100 of three: 2.0400 degrees of freedom by Welch and Satterthwaite, where equal ones have 4."""
    found = compare([19, 20, 21], [0, 10, 20])
    half = (found.high - found.low) / 2
    # t at 97.5 % lies between those of 2.1 (4.106) and 2 (4.303) degrees of freedom.
    assert 4.106 * (101 / 3) ** 0.5 < half < 4.303 * (101 / 3) ** 0.5
    assert found.difference == pytest.approx(10)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [2.0]), ([3.0, 3.0], [1.0, 1.0])])
def test_too_little_for_a_test(first, second):
    found = compare(first, second)
    assert found[1:] == (None, None, None)
    assert found.difference == sum(first) / len(first) - sum(second) / len(second)

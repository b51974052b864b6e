from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partwise.experiment.runs import Point
from partwise.monitor.series import Series

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=200)


def series_of(values, limit):
    found = Series(limit)
    for version, value in enumerate(values, 1):
        found.add(Point(version, 2.0 * version, 3 * version, 5 * version, value))
    return found


@given(VALUES, st.integers(2, 9))
def test_ends_and_extremes_stay_and_nothing_else_is_made_up(values, limit):
    found = series_of(values, limit)
    kept = found.points()
    assert len(kept) <= 2 * limit + 2
    assert found.num_added == len(values)
    versions = [p.version for p in kept]
    assert versions == sorted(set(versions))
    assert all(repr(p.value) == repr(values[p.version - 1]) and p.uplink == 3 * p.version for p in kept)
    if values:
        assert (versions[0], versions[-1]) == (1, len(values))
    numbers = [v for v in values if not math.isnan(v)]
    if numbers:
        left = [p.value for p in kept if not math.isnan(p.value)]
        assert (min(left), max(left)) == (min(numbers), max(numbers))
        assert (found.best(higher=False), found.best(higher=True)) == (min(numbers), max(numbers))
    else:
        assert math.isnan(found.best(higher=True))


@given(st.lists(st.floats(-9, 9), max_size=8))
def test_all_are_kept_while_they_are_few(values):
    assert [p.value for p in series_of(values, 8).points()] == values


def test_stretches_are_of_one_length_however_many_points():
    """A later stretch is not finer than an earlier one: 10,000 points in 10 stretches at most, none above a quarter."""
    found = series_of([float(v % 7) for v in range(10_000)], 10)
    versions = [p.version for p in found.points()]
    assert len(versions) >= 10
    assert max(b - a for a, b in pairwise(versions)) < 2500


def test_a_spike_is_not_lost():
    values = [1.0] * 5000
    values[1234], values[4321] = 90.0, -70.0
    kept = {p.version: p.value for p in series_of(values, 16).points()}
    assert (kept[1235], kept[4322]) == (90.0, -70.0)


def test_what_is_not_a_number_hides_no_extreme():
    values = [math.nan, 5.0, math.nan, math.nan, 2.0, math.nan, math.nan, 7.0, math.nan]
    left = [p.value for p in series_of(values, 2).points() if not math.isnan(p.value)]
    assert {2.0, 7.0} <= set(left)


def test_a_version_that_was_measured_again_counts_once():
    found = Series()
    for version, value in ((1, 0.25), (2, 0.5), (2, 0.75)):
        found.add(Point(version, 0.0, 0, 0, value))
    assert [p.value for p in found.points()] == [0.25, 0.75]
    assert found.num_added == 2


def test_bad_limit():
    with pytest.raises(ValueError, match=r"^Series\(limit=1\): must be at least 2, got 1\. 300 fill a screen\.$"):
        Series(1)

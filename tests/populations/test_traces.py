from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from partwise.core.errors import DataError
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.traces import Intervals, Trace

CSV = """client,start_seconds,end_seconds
2,0,4
0,5,9
2,4,6.5
0,20,30
2,50,inf
"""


def trace(tmp_path, text=CSV, **more):
    path = tmp_path / "there.csv"
    path.write_text(text)
    return Trace(path, **more)


def test_a_client_is_there_in_its_intervals(tmp_path):
    world = trace(tmp_path)
    asked = (0.0, 5.0, 8.9, 9.0, 25.0, 30.0)
    assert [world.next_available(0, now) for now in asked] == [5.0, 5.0, 8.9, 20.0, 25.0, math.inf]
    assert [world.available_until(0, now) for now in asked] == [0.0, 9.0, 9.0, 9.0, 30.0, 30.0]


def test_intervals_that_touch_are_one(tmp_path):
    world = trace(tmp_path)
    assert [world.available_until(2, now) for now in (0.0, 4.0, 6.5, 77.0)] == [6.5, 6.5, 6.5, math.inf]
    assert world.next_available(2, 6.5) == 50.0


def test_a_client_without_intervals_is_never_there(tmp_path):
    world = trace(tmp_path)
    for client in (1, 3, 10**6):
        assert world.next_available(client, 0.0) == math.inf
        assert world.available_until(client, 3.0) == 3.0


def test_a_trace_that_comes_again(tmp_path):
    world = trace(
        tmp_path, "client,start_seconds,end_seconds\n0,5,9\n0,20,30\n1,0,2\n1,90,100\n2,0,100\n", period_seconds=100
    )
    assert [world.next_available(0, now) for now in (0.0, 31.0, 106.0, 1031.0)] == [5.0, 105.0, 106.0, 1105.0]
    assert world.available_until(0, 325.0) == 330.0
    assert world.available_until(1, 95.0) == 102.0  # its stay goes on where the trace begins again
    assert world.available_until(1, 201.0) == 202.0
    assert world.available_until(2, 55.0) == math.inf


def test_a_trace_against_a_walk_over_all_intervals():
    rng = np.random.default_rng(3)
    client = np.repeat(np.arange(40), 9)
    edges = np.sort(rng.choice(1000, (40, 18), replace=True), axis=1) + np.arange(18) * 0.5
    start, end = edges[:, 0::2].reshape(-1), edges[:, 1::2].reshape(-1)
    mixed = np.argsort(start, kind="stable")
    world = Intervals(client[mixed], start[mixed], end[mixed])
    for c in range(40):
        own = [(s, e) for who, s, e in zip(client, start, end, strict=True) if who == c]
        for now in rng.uniform(0, 1010, 30).tolist():
            at = [e for s, e in own if s <= now < e]
            expected = now if at else min((s for s, _ in own if s > now), default=math.inf)
            assert world.next_available(c, now) == expected
            assert world.available_until(c, now) == (at[0] if at else now)


def test_a_million_clients_are_arrays():
    client = np.arange(1_000_000).repeat(2)
    start = np.tile([1.0, 10.0], 1_000_000) + client % 7
    world = Intervals(client, start, start + 2.0, period_seconds=50.0)
    assert world.next_available(999_999, 3.5 + 100.0) == 110.0 + 999_999 % 7
    assert world.available_until(500_001, 10.5 + 500_001 % 7) == 12.0 + 500_001 % 7


HEADER = "client,start_seconds,end_seconds\n"


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (
            HEADER + "0,5,9\n1,0,1\n0,2,4\n",
            {},
            r"must ascend and not overlap, got unsorted ones of client 0: 5 to 9, then 2 to 4 in line 4\. Sort and",
        ),
        (
            HEADER + "0,5,9\n1,0,1\n0,8.5,12\n",
            {},
            r"got overlapping ones of client 0: 5 to 9, then 8.5 to 12 in line 4\.",
        ),
        (
            HEADER + "0,-5,9\n",
            {},
            r"start_seconds must be finite and at least 0, got -5.0 in line 2\. Correct that line",
        ),
        (HEADER + "0,5,9\n0,12,12\n", {}, "end_seconds must be after start_seconds, got 12.0 in line 3"),
        (HEADER + "0,5,nan\n", {}, "end_seconds must be after start_seconds, got nan in line 2"),
        (HEADER + "0,5,soon\n", {}, r"end_seconds must be a number, got 'soon' in line 2\."),
        (HEADER + "0,5,9\n-1,5,9\n", {}, "client must be a whole number from 0 on, got -1 in line 3"),
        (HEADER + "0,5,9\n9007199254740991,5,9\n", {}, "client must be a number .* got 9007199254740991 in line 3"),
        (HEADER + "0,5,9\n0,95,101\n", {"period_seconds": 100}, "must be at most the period, 100, got 101.0 in line 3"),
        ("client,start,end_seconds\n0,5,9\n", {}, "start_seconds, end_seconds, got client, start, end_seconds. Name"),
        (HEADER, {}, "needs a header and at least one row, got 1 lines"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, more, message):
    world = trace(tmp_path, text, **more)
    with pytest.raises(DataError, match=r"^Trace\('.*there\.csv'\): .*" + message):
        ArrayPopulation({"x": torch.zeros(1)}, torch.arange(2), availability=world)


def test_bad_periods(tmp_path):
    with pytest.raises(ValueError, match=r"Trace\(period_seconds=0.0\): period_seconds must be positive and finite"):
        trace(tmp_path, period_seconds=0.0)
    with pytest.raises(
        ValueError, match=r"Intervals\(period_seconds=-1.0\): period_seconds must be positive and finite"
    ):
        Intervals(np.array([0]), np.array([0.0]), np.array([1.0]), -1.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([0, 0], [3.0, 1.0], [4.0, 2.0]), "got unsorted ones of client 0: 3 to 4, then 1 to 2 in row 1"),
        (
            ([0, 0], [3.0], [4.0, 5.0]),
            r"needs client, start and end of at least one interval, got 2, 1 and 2\. Give as",
        ),
        (([], [], []), "of at least one interval, got 0, 0 and 0"),
        (([-3], [0.0], [1.0]), "client must be at least 0, got -3 in row 0"),
        (([1.0, 0.7], [0.0, 0.0], [1.0, 1.0]), "client must be a whole number, got 0.7 in row 1"),
        (([math.nan], [0.0], [1.0]), "client must be at least 0, got nan in row 0"),
        (([2**53], [0.0], [1.0]), "client must be a number of the population's, below 100000000, got 9007199254740992"),
        ((["a"], [0.0], [1.0]), r"client must be one number per interval, \(n,\), got \(1,\) <U1"),
        (([[0]], [[0.0]], [[1.0]]), r"client must be one number per interval, \(n,\), got \(1, 1\) int64"),
        (([0], 0.0, [1.0]), r"start_seconds must be one number per interval, \(n,\), got \(\) float64"),
    ],
)
def test_bad_arrays(rows, message):
    with pytest.raises(DataError, match=r"^Intervals\(\): .*" + message):
        Intervals(*map(np.array, rows))


@pytest.mark.parametrize("period", [20.0, math.inf])
@pytest.mark.parametrize("now", [0.0, 6.5, 61.0])
def test_many_are_told_of_as_each_is(period, now):
    """Against the look at one, at moments in one period and in two, also of clients without an interval."""
    draw = np.random.default_rng(7)
    begins = np.sort(draw.random((40, 3)), 1) * 18
    ends = np.concatenate([begins[:, 1:] - 0.1 * draw.random((40, 2)), np.full((40, 1), 20.0)], 1)
    begins[::4, 0] = 0.0
    begins, ends = np.round(begins, 1), np.round(ends, 1)  # so that bounds are met, and neighbours touch
    client = np.repeat(np.arange(40) * 2, 3)
    keep = (ends > begins).ravel()
    world = Intervals(client[keep], begins.ravel()[keep], ends.ravel()[keep], period)
    who = draw.permutation(90)
    assert world.are_there(who.tolist(), now) == [world.next_available(c, now) <= now for c in who.tolist()]
    for spread in (2.0, 30.0):
        moments = np.round(now + spread * draw.random(90), 1)
        each = [world.available_until(int(c), float(t)) for c, t in zip(who, moments, strict=True)]
        assert world.stays(who.tolist(), moments).tolist() == each
    assert sum(a > t for a, t in zip(each, moments, strict=True)) > (5 if period == 20 or now < 60 else -1)

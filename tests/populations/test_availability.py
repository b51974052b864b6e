from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from partwise.core.errors import DataError
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.availability import Always, Bernoulli, Blocks, Daily
from partwise.populations.markov import Markov
from partwise.populations.traces import Intervals


def test_always():
    assert Always().next_available(3, 17.25) == 17.25


def test_daily_is_available_for_its_share_of_the_period():
    world = Daily(share=0.3, period_seconds=100.0, seed=5)
    for client in (0, 1, 7):
        moments = [t * 0.25 for t in range(4000)]  # ten periods
        free = [world.next_available(client, t) == t for t in moments]
        assert sum(free) / len(free) == pytest.approx(0.3, abs=0.01)


def test_daily_answers_with_the_first_free_moment():
    world = Daily(share=0.3, period_seconds=100.0, seed=5)
    for client in range(20):
        for now in (0.0, 33.3, 99.9, 12345.678):
            then = world.next_available(client, now)
            assert now <= then <= now + 70.0 + 1e-6
            assert world.next_available(client, then) == then
            assert world.next_available(client, then - 1e-3) in (then - 1e-3, pytest.approx(then, abs=1e-6))


def test_daily_hours_differ_between_clients_and_seeds():
    first = [Daily(share=0.01, seed=1).next_available(c, 0.0) for c in range(50)]
    assert len(set(first)) > 45
    assert first != [Daily(share=0.01, seed=2).next_available(c, 0.0) for c in range(50)]


@pytest.mark.parametrize(("share", "seconds"), [(0.5, 86_400.0), (0.25, 86_400.0), (0.1, 60.0), (1 / 3, 3600.0)])
def test_a_daily_stretch_has_ended_at_the_moment_that_is_said(share, seconds):
    """Of twenty stretches of each client: then it is away for the rest of the period."""
    world = Daily(share, seconds)
    for client in range(300):
        now = 0.0
        for _ in range(20):
            now = world.available_until(client, world.next_available(client, now))
            assert world.next_available(client, now) == pytest.approx(now + (1 - share) * seconds, rel=1e-9)


def test_daily_whole_share_is_always():
    assert Daily(share=1.0).next_available(4, 55.5) == 55.5


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_daily_share_out_of_range(share):
    with pytest.raises(
        ValueError, match=rf"Daily\(share={share}\): share must be in \(0, 1\], got {share}\. Use Always"
    ):
        Daily(share=share)


@pytest.mark.parametrize("period", [0.0, math.inf])
def test_daily_period_out_of_range(period):
    with pytest.raises(ValueError, match=r"the period must be positive and finite, got .*\. A day has 86400 seconds\."):
        Daily(period_seconds=period)


# Bernoulli


def is_there(world: Any, client: int, now: float) -> bool:
    return world.next_available(client, now) == now


def near(count: int, n: int, p: float) -> bool:
    """Within five standard errors of a binomial distribution: wrong once in a million."""
    return abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_bernoulli_has_its_share_over_clients_and_over_periods():
    world = Bernoulli(p=0.3, period_seconds=7.0, seed=2)
    assert near(sum(is_there(world, c, 1000.0) for c in range(4000)), 4000, 0.3)
    there = [is_there(world, 11, 7.0 * t + 3.0) for t in range(4000)]
    assert near(sum(there), 4000, 0.3)
    assert near(sum(a and b for a, b in pairwise(there)), 3999, 0.09)  # nothing is remembered


def test_bernoulli_against_a_walk_over_its_periods():
    world = Bernoulli(p=0.25, period_seconds=10.0, seed=5)
    for client in range(6):
        there = [is_there(world, client, 10.0 * t) for t in range(200)]
        for t in range(120):
            now = 10.0 * t + 4.5
            back = next(u for u in range(t, 200) if there[u])
            gone = next(u for u in range(t, 200) if not there[u])
            assert world.next_available(client, now) == (now if there[t] else 10.0 * back)
            assert world.available_until(client, now) == (10.0 * gone if there[t] else now)


@pytest.mark.parametrize("p", [1e-4, 1 - 1e-4])
def test_bernoulli_of_long_runs_is_found_soon(p):
    world = Bernoulli(p=p, period_seconds=1.0)
    runs = [world.next_available(c, 0.0) if p < 0.5 else world.available_until(c, 0.0) for c in range(30)]
    assert sum(runs) / 30 == pytest.approx(1e4, rel=5 / math.sqrt(30))


def test_bernoulli_of_chance_one_is_always():
    assert Bernoulli(p=1).available_until(3, 17.0) == math.inf


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, 1e-9, math.nan])
def test_bernoulli_chance_out_of_range(p):
    with pytest.raises(
        ValueError, match=rf"Bernoulli\(p={p}\): p must be in \[0.000001, 0.999999\], or 1, got {p}\. With"
    ):
        Bernoulli(p=p)


# Blocks


def test_blocks_take_turns():
    world = Blocks(num_blocks=3, seconds_per_block=10.0)
    assert [world.block(c) for c in range(5)] == [0, 1, 2, 0, 1]
    assert [world.next_available(1, now) for now in (0.0, 10.0, 19.5, 20.0, 39.0)] == [10.0, 10.0, 19.5, 40.0, 40.0]
    assert [world.available_until(1, now) for now in (0.0, 10.0, 19.5, 20.0, 41.0)] == [0.0, 20.0, 20.0, 20.0, 50.0]
    assert [world.available_until(2, now) for now in (29.0, 30.0)] == [30.0, 30.0]


def test_the_first_digits_in_the_first_rounds():
    """The first D digits in the first E of every 2E rounds: 100 clients per digit, D = 3, E = 50, rounds of 2 s."""
    world = Blocks(num_blocks=2, seconds_per_block=100.0, starts=(0, 300))
    for round, first in ((0, True), (49, True), (50, False), (99, False), (100, True), (149, True), (150, False)):
        there = [c for c in range(0, 1000, 10) if is_there(world, c, 2.0 * round)]
        assert there == [c for c in range(0, 1000, 10) if (c < 300) == first]


def test_blocks_of_unequal_length_leave_no_gap():
    world = Blocks(num_blocks=3, seconds_per_block=(0.1, 0.7, 0.2))
    now = 0.0
    for turn in range(300):
        block = turn % 3
        assert [is_there(world, c, now) for c in range(3)] == [c == block for c in range(3)]
        assert world.available_until(block, now) == world.next_available((block + 1) % 3, now) > now
        now = world.available_until(block, now)
    assert now == pytest.approx(100.0)


def test_blocks_in_lists_are_those_in_tuples():
    world = Blocks(2, seconds_per_block=[5.0, 20.0], starts=[0, 3])
    assert world == Blocks(2, seconds_per_block=(5.0, 20.0), starts=(0, 3))
    assert (world.next_available(3, 0.0), world.available_until(3, 6.0)) == (5.0, 25.0)


def test_one_block_is_always_there():
    assert Blocks(num_blocks=1, seconds_per_block=5.0).available_until(3, 17.0) == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blocks(0), r"Blocks\(num_blocks=0\): num_blocks must be at least 1, got 0\."),
        (
            lambda: Blocks(2, 0.0),
            r"Blocks\(seconds_per_block=0.0\): seconds_per_block must be positive and finite, got 0.0",
        ),
        (
            lambda: Blocks(3, (1.0, 2.0)),
            r"one number, or one for each of 3 blocks, got 2\. Give one number for blocks of",
        ),
        (
            lambda: Blocks(2, starts=(0,)),
            r"Blocks\(starts=\(0,\)\): starts must be the first clients of 2 blocks, ascending",
        ),
        (lambda: Blocks(2, starts=(1, 5)), r"from 0, got \(1, 5\)\. Leave starts out for clients by turns\."),
        (lambda: Blocks(3, starts=(0, 5, 5)), r"ascending from 0, got \(0, 5, 5\)"),
    ],
)
def test_bad_blocks(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What every availability promises


def intervals(gaps: Sequence[float], *, has_period: bool) -> Intervals:
    """Intervals of one client: every second stretch of time."""
    edges = np.cumsum(gaps)
    starts, ends = edges[0::2][: len(edges) // 2], edges[1::2]
    return Intervals(np.zeros(len(ends), np.int64), starts, ends, float(edges[-1]) if has_period else math.inf)


LENGTHS = st.floats(0.01, 1000.0)
WORLDS = st.one_of(
    st.just(Always()),
    st.builds(Daily, share=st.floats(0.01, 1.0), period_seconds=LENGTHS, seed=st.integers(0, 5)),
    st.builds(Bernoulli, p=st.floats(0.05, 0.95), period_seconds=LENGTHS, seed=st.integers(0, 5)),
    st.builds(Markov, mean_on_seconds=LENGTHS, mean_off_seconds=LENGTHS, seed=st.integers(0, 5)),
    st.lists(LENGTHS, min_size=1, max_size=4).map(lambda found: Blocks(len(found), tuple(found))),
    st.builds(
        intervals,
        st.tuples(st.just(0.0) | LENGTHS, LENGTHS, LENGTHS, LENGTHS, LENGTHS, LENGTHS),
        has_period=st.booleans(),
    ),
)


@given(WORLDS, st.integers(0, 3), st.floats(0.0, 1e5))
def test_what_is_said_of_one_moment_agrees_with_what_is_said_of_others(world, client, now):
    then, until = world.next_available(client, now), world.available_until(client, now)
    assert then >= now
    assert until >= now
    assert (then == now) == (until > now)
    if then < math.inf:
        assert is_there(world, client, then)
        assert world.available_until(client, then) > then
    there = then == now
    change = until if there else then
    for share in (0.001, 0.3, 0.5, 0.999):  # nothing changes before it is said to
        moment = now + share * (min(change, now + 1e4) - now)
        if now < moment < change - 1e-9 * change:
            assert is_there(world, client, moment) == there
            again = world.available_until(client, moment) if there else world.next_available(client, moment)
            assert again == change or again == pytest.approx(change, rel=1e-9)
    if there and until < math.inf and not isinstance(world, Daily):  # whose absence may be shorter than a hair
        assert not is_there(world, client, until)


@given(WORLDS, st.integers(0, 10**6), st.floats(0.0, 1e9))
def test_clients_far_away_are_told_of_as_well(world, client, now):
    assert world.next_available(client, now) >= now
    assert world.available_until(client, now) >= now
    assert world.block(client) >= 0


# Nobody


def test_an_availability_that_never_lets_anyone_in_is_refused_when_the_population_is_made():
    of_others = Intervals(np.array([7]), np.array([0.0]), np.array([9.0]))
    with pytest.raises(
        DataError,
        match=r"ArrayPopulation\(availability=Intervals\(.*\)\): must let some client in at some time, got none of 3\. "
        r"Check that it numbers the clients from 0 to 2\.",
    ):
        ArrayPopulation({"x": torch.zeros(3)}, torch.arange(4), availability=of_others)
    assert (
        ArrayPopulation({"x": torch.zeros(8)}, torch.arange(9), availability=of_others).available_until(7, 3.0) == 9.0
    )

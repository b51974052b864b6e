from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev

import numpy as np
import pytest

from partwise.core.population import Profile
from partwise.populations.distributions import Exponential, LogNormal, Normal, Uniform, Zipf
from partwise.populations.drawn import Drawn, Drift
from partwise.populations.profiles import Constant

WORLD = Drawn(
    Normal(0.1, 0.03, 0.01),
    uplink=Uniform(2.0, 9.0),
    downlink=Zipf(50.0, 1.2, 30),
    memory=LogNormal(1e6, 0.5),
    width=0.5,
    seed=3,
)


def test_numbers_stand_for_all_clients():
    assert Drawn(0.2, 3.0, 4, 5.0, 0.5).profile(9) == Profile(0.2, 3.0, 4.0, 5.0, 0.5)
    assert Drawn().profile(0) == Profile()


def test_numbers_of_numpy_stand_for_all_clients():
    world = Drawn(np.float32(0.25), uplink=np.int64(7))
    assert world.profile(2)[:2] == (0.25, 7.0)
    assert world.speeds([0, 9])[:, :2].tolist() == [[0.25, 7.0], [0.25, 7.0]]


def test_one_at_a_time_is_all_at_once_to_the_last_bit():
    table = WORLD.table(np.arange(800))
    assert [WORLD.profile(c) for c in range(800)] == [table.profile(c) for c in range(800)]
    assert WORLD.table(np.array([700, 3])).profile(0) == table.profile(700)


def test_every_quantity_is_drawn_from_its_distribution_and_by_itself():
    drawn = [WORLD.profile(c) for c in range(4000)]
    paces, ups, downs = ([p[i] for p in drawn] for i in range(3))
    assert mean(paces) == pytest.approx(0.1, abs=5 * 0.03 / math.sqrt(4000))
    assert stdev(paces) == pytest.approx(0.03, rel=0.06)
    assert mean(ups) == pytest.approx(5.5, abs=5 * 7 / math.sqrt(12 * 4000))
    total = sum(k**-1.2 for k in range(1, 31))
    assert sum(d == 50.0 for d in downs) / 4000 == pytest.approx(1 / total, abs=5 * math.sqrt(0.25 / 4000))
    for first, second in ((paces, ups), (paces, downs), (ups, downs)):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(4000)
    assert {p.width for p in drawn} == {0.5}


def test_the_seed_is_of_the_draws():
    assert replace(WORLD, seed=4).profile(5) != WORLD.profile(5)


def test_a_million_paces_at_once():
    paces = Drawn(Exponential(0.05)).table(np.arange(1_000_000)).seconds_per_step
    assert paces.mean() == pytest.approx(0.05, rel=0.005)
    assert np.median(paces) == pytest.approx(0.05 * math.log(2), rel=0.01)


# Drift


def test_a_pace_stays_for_a_period():
    world = Drift(Constant(0.4, uplink=7.0), sigma=0.5, period_seconds=10.0, seed=2)
    first, second = world.profile(3, 0.0), world.profile(3, 10.0)
    assert world.profile(3, 9.999) == first != second == world.profile(3, 19.0)
    assert {first.uplink, second.uplink} == {7.0}
    assert world.profile(4).seconds_per_step != first.seconds_per_step


def test_the_factor_of_a_pace_is_log_normal():
    world = Drift(Constant(0.4), sigma=0.5, period_seconds=10.0)
    logs = [math.log(world.profile(c, 10.0 * t).seconds_per_step / 0.4) for c in range(40) for t in range(60)]
    assert mean(logs) == pytest.approx(0.0, abs=5 * 0.5 / math.sqrt(2400))
    assert stdev(logs) == pytest.approx(0.5, rel=0.08)
    steps = [b - a for a, b in pairwise(logs)]
    assert stdev(steps) == pytest.approx(0.5 * math.sqrt(2), rel=0.08)  # nothing is left of the last period


def test_drift_of_many_at_once():
    world = Drift(WORLD, sigma=0.2, period_seconds=60.0)
    table = world.table(np.arange(300), 125.0)
    assert [world.profile(c, 125.0) for c in range(300)] == [table.profile(c) for c in range(300)]


def test_no_drift():
    assert Drift(WORLD, sigma=0.0).profile(8, 1e6) == WORLD.profile(8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Drawn(-0.5),
            r"Drawn\(seconds_per_step=-0.5\): seconds_per_step must be finite and at least 0, got -0.5",
        ),
        (lambda: Drawn(math.inf), r"seconds_per_step must be finite and at least 0, got inf\. See help\(Drawn\)\."),
        (lambda: Drawn(uplink=0.0), r"Drawn\(uplink=0.0\): uplink must be above 0, got 0.0\."),
        (lambda: Drawn(memory=-1), "memory must be above 0, got -1.0"),
        (lambda: Drawn(width=0.0), r"width must be in \(0, 1\], got 0.0"),
        (
            lambda: Drift(sigma=-1.0),
            r"Drift\(sigma=-1.0\): sigma must be finite and at least 0, got -1.0\. 0.3: one pace",
        ),
        (lambda: Drift(period_seconds=0.0), r"Drift\(period_seconds=0.0\): period_seconds must be positive and finite"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Odd:
    """A distribution from outside, with something below zero."""

    def quantile(self, shares):
        return shares - 0.5


def test_a_distribution_that_reaches_below_zero():
    with pytest.raises(ValueError, match=r"Drawn\(seconds_per_step=.*Odd.*\): .* at least 0, got -0\.4999"):
        Drawn(Odd())

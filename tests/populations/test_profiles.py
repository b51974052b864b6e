from __future__ import annotations

import math
from collections import Counter
from statistics import median, stdev

import numpy as np
import pytest

from partwise.core.population import Profile
from partwise.populations.distributions import Exponential
from partwise.populations.drawn import Drawn, Drift
from partwise.populations.profiles import Constant, LogNormal, ProfileArrays, Widths


def test_constant():
    assert Constant(0.2, 3.0, 4.0, 5.0, 0.5).profile(9) == Profile(0.2, 3.0, 4.0, 5.0, 0.5)
    assert Constant().profile(0) == Profile()


def test_log_normal_has_its_medians_and_spread():
    world = LogNormal(seconds_per_step=0.2, uplink=100.0, downlink=700.0, sigma=0.8, memory=9.0, width=0.5, seed=4)
    drawn = [world.profile(c) for c in range(3000)]
    for name, middle in (("seconds_per_step", 0.2), ("uplink", 100.0), ("downlink", 700.0)):
        logs = [math.log(getattr(p, name) / middle) for p in drawn]
        assert abs(median(logs)) < 5 * 1.2533 * 0.8 / math.sqrt(3000)  # the median's standard error, five times
        assert stdev(logs) == pytest.approx(0.8, rel=0.07)
    assert {(p.memory, p.width) for p in drawn} == {(9.0, 0.5)}


def test_log_normal_quantities_are_independent():
    drawn = [LogNormal(sigma=1.0).profile(c) for c in range(2000)]
    slow_pace = [p.seconds_per_step > 0.05 for p in drawn]
    slow_link = [p.uplink < 0.5e6 for p in drawn]
    both = sum(a and b for a, b in zip(slow_pace, slow_link, strict=True))
    assert both / 2000 == pytest.approx(0.25, abs=0.05)


def test_log_normal_without_spread_is_constant():
    world = LogNormal(seconds_per_step=0.0, uplink=5.0, downlink=6.0, sigma=0.0)
    assert world.profile(3) == Profile(0.0, 5.0, 6.0)


def test_log_normal_does_not_depend_on_the_order_of_asking():
    world = LogNormal(seed=2)
    late = world.profile(999_999)
    world.profile(0)
    assert world.profile(999_999) == late != LogNormal(seed=3).profile(999_999)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((), {1.0: 20, 0.5: 20, 0.25: 20}),
        ((0.5, 0.2, 0.3), {1.0: 30, 0.5: 12, 0.25: 18}),
        ((1, 1, 4), {1.0: 10, 0.5: 10, 0.25: 40}),
    ],
)
def test_widths_have_exact_proportions(shares, expected):
    mix = Widths(ratios=(1.0, 0.5, 0.25), shares=shares, seed=8)
    assert Counter(mix.profile(c).width for c in range(60)) == expected


def test_widths_proportions_hold_in_every_block():
    mix = Widths()
    for block in range(6):
        assert sorted(mix.profile(5 * block + i).width for i in range(5)) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def test_widths_order_differs_between_blocks_and_seeds():
    orders = {tuple(Widths(seed=s).profile(5 * b + i).width for i in range(5)) for s in range(3) for b in range(5)}
    assert len(orders) > 10


def test_widths_shares_that_are_no_simple_fractions():
    mix = Widths(ratios=(1.0, 0.5), shares=(math.pi - 3, 4 - math.pi))
    assert Counter(mix.profile(c).width for c in range(1000))[1.0] == pytest.approx(141.6, abs=10)


def test_widths_give_a_thousandth_of_the_clients_a_ratio():
    mix = Widths(ratios=(1.0, 0.5), shares=(999, 1))
    assert [mix.profile(c).width for c in range(2000)].count(0.5) == 2


def test_widths_in_lists_are_those_in_tuples():
    lists = Widths(ratios=[1.0, 0.5], shares=[1, 3])
    assert lists == Widths(ratios=(1.0, 0.5), shares=(1, 3))
    assert sorted(lists.profile(c).width for c in range(4)) == [0.5, 0.5, 0.5, 1.0]


def test_widths_keep_the_rest_of_the_profile():
    got = Widths(ratios=(0.25,), base=Constant(seconds_per_step=0.7, uplink=3.0)).profile(5)
    assert got == Profile(seconds_per_step=0.7, uplink=3.0, width=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(seconds_per_step=-1.0), r"Constant\(seconds_per_step=-1.0\): .* at least 0, got -1\.0\."),
        (lambda: Constant(uplink=0.0), r"Constant\(uplink=0.0\): uplink must be above 0"),
        (lambda: Constant(downlink=-2.0), "downlink must be above 0, got -2.0"),
        (lambda: Constant(memory=0.0), "memory must be above 0"),
        (lambda: Constant(width=1.5), r"width must be in \(0, 1\], got 1\.5"),
        (lambda: LogNormal(sigma=-0.5), r"LogNormal\(sigma=-0.5\): sigma must be at least 0"),
        (lambda: LogNormal(sigma=math.inf), r"LogNormal\(sigma=inf\): sigma must be finite, got inf"),
        (lambda: LogNormal(uplink=0.0), "uplink must be above 0"),
        (lambda: Widths(ratios=()), r"ratios must be in \(0, 1\], at least one"),
        (lambda: Widths(ratios=(0.5, 0.0)), r"ratios must be in \(0, 1\]"),
        (lambda: Widths(shares=(0.5, 0.5)), "got 2 shares for 5 ratios. Leave shares out"),
        (lambda: Widths(ratios=(1.0, 0.5), shares=(1.0, 0.0)), "shares must be above 0 and finite. Leave the"),
        (lambda: Widths(ratios=(1.0, 0.5), shares=(1.0, math.inf)), "shares must be above 0 and finite"),
        (
            lambda: Widths(ratios=(1.0, 0.5), shares=(9999, 1)),
            r"Widths\(shares=\(9999, 1\)\): shares must be at least a thousandth of their sum, got 1, which no client",
        ),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "world",
    [
        Constant(0.2, 3.0, 4.0, 5.0, 0.5),
        LogNormal(sigma=0.7),
        Widths(base=LogNormal(0.3)),
        Drawn(Exponential(0.05), downlink=Exponential(9.0), uplink=7.0),
        Drift(LogNormal(), period_seconds=60.0),
        ProfileArrays(np.arange(9) / 8, np.arange(1.0, 10), np.arange(2.0, 11)),
    ],
    ids=lambda world: type(world).__name__,
)
def test_speeds_of_many_are_those_of_each(world):
    clients = [7, 2, 2, 5]
    assert [tuple(row) for row in world.speeds(clients, 130.0).tolist()] == [
        world.profile(c, 130.0)[:3] for c in clients
    ]

from __future__ import annotations

import math

import pytest

from partwise.populations.availability import Always, Daily


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

from __future__ import annotations

import math

import pytest

from partwise.core.schedule import Commit, Discard, Dispatch, GiveUp
from partwise.schedulers import Tiered
from partwise.schedulers.choices import Weighted
from toy_clock import Clock, People, paced

PACES = [3.0, 1.0, 8.0, 1.5, 9.0, 2.5, 7.0]  # by pace: 1, 3 | 5, 0 | 6, 2, 4


def test_clients_are_in_tiers_by_the_time_of_their_first_task():
    clock = Clock(Tiered(tiers=3, cohort=9, versions=30), People(range(7)), paced(PACES)).run()
    assert [tier.clients for tier in clock.state.tiers] == [(1, 3), (0, 5), (2, 4, 6)]
    assert len(clock.of(Discard)) == 7  # the warm-up
    assert [when for when, d in clock.of(Dispatch)[:14]] == [0.0] * 7 + [9.0] * 7
    assert {d.group for _, d in clock.of(Dispatch)[:7]} == {-1}
    for when, commit in clock.of(Commit):
        (group,) = {r.group for r in commit.replies}
        assert {r.client for r in commit.replies} == set(clock.state.tiers[group].clients)
        assert (when - 9.0) % (1.5, 3.0, 9.0)[group] == 0  # each at its own pace
    groups = [commit.replies[0].group for _, commit in clock.of(Commit)]
    assert [groups.count(g) for g in range(3)] == [18, 9, 3]
    assert clock.stopped == "done"


def test_a_tier_asks_a_cohort_of_its_own():
    clock = Clock(Tiered(tiers=2, cohort=2, versions=200), People(range(10)), paced([1.0 + c for c in range(10)])).run()
    asked = [d for _, d in clock.of(Dispatch)[10:]]
    assert {d.client for d in asked if d.group == 0} == set(range(5))
    assert {d.client for d in asked if d.group == 1} == set(range(5, 10))
    assert {len(commit.replies) for _, commit in clock.of(Commit)} == {2}


def test_who_was_lost_or_away_in_the_warm_up_is_in_the_last_tier():
    def seconds(client, steps, now):
        return -0.5 if client == 0 and now == 0 else math.inf if client == 1 and now == 0 else 1.0 + client

    def there(client, now):
        return max(now, 500.0) if client == 2 else max(now, 3.0) if client == 3 else now

    scheduler = Tiered(tiers=2, cohort=3, versions=5, patience_seconds=50.0)
    clock = Clock(scheduler, People(range(6), there), seconds).run()
    assert [tier.clients for tier in clock.state.tiers] == [(3, 4, 5), (0, 1, 2)]
    assert clock.of(GiveUp)[0][0] == 50.0
    assert clock.stopped == "done"


def test_a_round_is_committed_without_who_is_lost_and_asked_again_if_all_are():
    def seconds(client, steps, now):
        if now > 0 and client in (1, 2):
            return -0.25 if client == 1 else math.inf
        return 2.0 if client == 0 else 1.0

    scheduler = Tiered(tiers=2, cohort=2, versions=0, seconds=100.0, patience_seconds=10.0)
    clock = Clock(scheduler, People(range(4)), seconds).run()
    assert [tier.clients for tier in clock.state.tiers] == [(1, 2), (0, 3)]
    assert {r.group for _, c in clock.of(Commit) for r in c.replies} == {1}
    assert [when for when, d in clock.of(Dispatch) if d.client == 2] == [0, 2, 12, 22, 32, 42, 52, 62, 72, 82, 92]
    assert clock.stopped == "100 seconds are over"


def test_a_tier_waits_until_somebody_of_it_is_there():
    def there(client, now):
        return now if client > 1 or now % 20 < 5 else now + 20 - now % 20

    clock = Clock(Tiered(tiers=2, cohort=2, versions=25), People(range(4), there), paced([1.0, 1.0, 2.0, 2.0])).run()
    assert clock.stopped == "done"
    assert all(when % 20 < 5 for when, d in clock.of(Dispatch) if d.client < 2)
    assert max(when for when, d in clock.of(Dispatch) if d.client < 2) >= 20


def test_it_stops_when_nobody_will_ever_come():
    people = People(range(4), lambda client, now: now if now < 3 else math.inf)
    clock = Clock(Tiered(tiers=2), people, paced([1.0] * 4)).run()
    assert clock.stopped == "no client is at work, and none will be available any more"
    nowhere = People(range(4), lambda client, now: math.inf)
    assert Clock(Tiered(tiers=2), nowhere, paced([1.0] * 4)).run().stopped == clock.stopped


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tiers": 0}, r"Tiered\(tiers=0\): must be at least 1, got 0\."),
        ({"cohort": 0}, r"Tiered\(cohort=0\): must be at least 1, got 0\."),
        (
            {"patience_seconds": -1.0},
            r"Tiered\(patience_seconds=-1\.0\): must be above 0, got -1\.0\. .* A day is usual\.",
        ),
    ],
)
def test_wrong_values_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Tiered(**arguments)


def test_more_tiers_than_clients_are_refused():
    with pytest.raises(ValueError, match=r"Tiered\(tiers=3\): must be at most the population, got a population of 2\."):
        Tiered().init(People(range(2)))


def test_weights_are_one_per_client_of_the_population():
    weights = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
    scheduler = Tiered(tiers=2, cohort=1, versions=40, choice=Weighted(weights))
    clock = Clock(scheduler, People(range(6)), paced([1.0 + c for c in range(6)])).run()
    assert clock.stopped == "done"
    asked = [d for _, d in clock.of(Dispatch)[6:]]
    assert {d.client for d in asked if d.group == 0} == {1}
    assert {d.client for d in asked if d.group == 1} == {3, 5}
    with pytest.raises(ValueError, match=r"Weighted\(weights\): must be one per client, got 6 for a population of 5"):
        scheduler.init(People(range(5)))

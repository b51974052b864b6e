"""A client that is lost as soon as it is asked, among others that answer."""

from __future__ import annotations

import pytest

from partwise.core.schedule import Commit, Dispatch, Lost
from partwise.schedulers import FedAsync, FedBuff, FedCompass, Tiered
from partwise.schedulers.choices import Stalest
from toy_clock import Clock, People


def seconds(client: int, steps: int, now: float) -> float:
    """The first is lost at once, whenever it is asked; the others take ten seconds."""
    return -1e-9 if client == 0 else 10.0


@pytest.mark.parametrize(
    ("scheduler", "moments"),
    [
        (FedAsync(concurrency=3, versions=6), [10, 10, 20, 20, 30, 30]),
        (FedAsync(concurrency=3, versions=6, weighting="unbiased"), [10, 10, 20, 20, 30, 30]),
        (FedAsync(concurrency=2, versions=4, choice=Stalest()), [10, 10, 20, 20]),
        (FedBuff(buffer=2, concurrency=3, versions=3), [10, 20, 30]),
        (FedBuff(buffer=3, concurrency=3, versions=2, replace="commit"), [20, 40]),
        (FedCompass(min_steps=1, max_steps=1, versions=4), [10, 10, 20, 30]),
        (Tiered(tiers=3, cohort=1, versions=4), [20, 20, 30, 30]),
    ],
    ids=repr,
)
def test_one_client_that_is_lost_at_once_does_not_end_the_run_of_the_others(scheduler, moments):
    """Two of three answer every ten seconds; a buffer of three is filled when one of them has answered twice,
    and a group of FedCompass has both, but for their first replies."""
    clock = Clock(scheduler, People(range(3)), seconds).run()
    assert clock.stopped == "done"
    assert [round(now, 6) for now, _ in clock.of(Commit)] == moments
    assert len(clock.of(Lost)) < 25


def by_day(client: int, now: float) -> float:
    """The first is always there, the others in the first half of every 20,000 seconds."""
    return now if client == 0 or now % 20_000 < 10_000 else now - now % 20_000 + 20_000


def seconds_by_day(client: int, steps: int, now: float) -> float:
    """The first is lost at once; the others take 500 seconds, or are lost when the day ends."""
    if client == 0:
        return -1e-9
    left = 10_000 - now % 20_000
    return 500.0 if left >= 500 else -left - 1e-9


@pytest.mark.parametrize(
    "scheduler",
    [
        FedAsync(concurrency=3, versions=60),
        FedAsync(concurrency=1, versions=30, choice=Stalest()),
        FedBuff(buffer=2, concurrency=3, versions=30),
        FedBuff(buffer=2, concurrency=3, versions=30, replace="commit"),
        FedCompass(min_steps=1, max_steps=1, versions=30),
        Tiered(tiers=3, cohort=1, versions=50),
        Tiered(tiers=1, cohort=1, versions=30, choice=Stalest()),
    ],
    ids=repr,
)
def test_it_rests_also_where_the_others_are_away_or_are_asked_one_by_one(scheduler):
    clock = Clock(scheduler, People(range(3), by_day), seconds_by_day).run()
    assert clock.stopped == "done"
    assert 20_000 < clock.now < 60_000


def test_a_buffer_takes_nobody_twice_while_another_will_be_there():
    """The third comes after 100 seconds; what the others sent by then waits for it, while the first rests."""
    scheduler = FedBuff(buffer=3, concurrency=3, versions=1, replace="commit")
    people = People(range(4), lambda client, now: max(now, 100.0) if client == 3 else now)
    clock = Clock(scheduler, people, seconds).run()
    ((now, commit),) = clock.of(Commit)
    assert now == 110
    assert sorted(reply.client for reply in commit.replies) == [1, 2, 3]


def test_who_rests_is_not_asked_while_a_buffer_can_be_filled_by_another():
    """Five losses at once, then it rests for 864 seconds; the other fills twelve buffers of two, alone."""
    clock = Clock(FedBuff(buffer=2, concurrency=2, versions=12, replace="commit"), People(range(2)), seconds).run()
    assert [round(now, 6) for now, _ in clock.of(Commit)] == [20.0 * n for n in range(1, 13)]
    assert len(clock.of(Lost)) == 5


def test_who_is_asked_in_spite_of_its_rest_rests_no_longer():
    """All are lost five times at once and asked all the same; from then on, the first answers every ten seconds."""

    def mended(client, steps, now):
        return -1e-9 if now < 4.5e-9 else (10.0, 25.0)[client]

    clock = Clock(FedAsync(concurrency=2, versions=4), People(range(2)), mended).run()
    assert len(clock.of(Lost)) == 10
    assert [round(now, 6) for now, _ in clock.of(Commit)] == [10, 20, 25, 30]


@pytest.mark.parametrize(
    ("scheduler", "moments"),
    [
        (FedAsync(concurrency=3, versions=20, patience_seconds=1000.0), [0, 10, 20, 30]),
        (Tiered(tiers=3, cohort=1, versions=20, patience_seconds=1000.0), [0, 8, 18, 28]),
    ],
    ids=repr,
)
def test_it_is_asked_again_after_a_hundredth_of_the_patience(scheduler, moments):
    """A thousand seconds make ten: a reply of the others ends a streak, and the next begins then.

    Tiers are made at 8 s, when the times of the others have been taken.
    """

    def until_25(client, steps, now):
        return -1e-9 if client == 0 and now < 25 else 8.0

    clock = Clock(scheduler, People(range(3)), until_25).run()
    asked = sorted({round(now, 6) for now, action in clock.of(Dispatch) if action.client == 0})
    assert asked[:4] == moments
    assert {reply.client for _, commit in clock.of(Commit) for reply in commit.replies} == {0, 1, 2}


@pytest.mark.parametrize(
    "scheduler",
    [
        FedAsync(concurrency=2),
        FedAsync(concurrency=1, choice=Stalest()),
        FedBuff(buffer=1, concurrency=1),
        FedBuff(buffer=2, concurrency=2, replace="commit"),
        FedCompass(),
        Tiered(tiers=2, cohort=1),
        Tiered(tiers=1, cohort=2),
    ],
    ids=repr,
)
def test_who_is_alone_does_not_rest(scheduler):
    clock = Clock(scheduler, People(range(2)), lambda c, s, now: -1e-9).run()
    assert clock.stopped.endswith("tasks in a row were lost, without a reply")
    assert clock.now < 1

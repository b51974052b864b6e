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


def test_it_is_asked_again_after_a_hundredth_of_the_patience():
    """A thousand seconds make ten: the reply of ten seconds ends a streak, and the next begins then."""

    def until_25(client, steps, now):
        return -1e-9 if client == 0 and now < 25 else 8.0

    clock = Clock(FedAsync(concurrency=3, versions=20, patience_seconds=1000.0), People(range(3)), until_25).run()
    asked = sorted({round(now, 6) for now, action in clock.of(Dispatch) if action.client == 0})
    assert asked[:4] == [0, 10, 20, 30]
    assert {reply.client for _, commit in clock.of(Commit) for reply in commit.replies} == {0, 1, 2}


def test_who_is_alone_does_not_rest():
    clock = Clock(FedAsync(concurrency=2), People(range(2)), lambda c, s, now: -1e-9).run()
    assert clock.stopped.endswith("tasks in a row were lost, without a reply")
    assert clock.now < 1

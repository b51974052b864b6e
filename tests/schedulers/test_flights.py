from __future__ import annotations

import pytest

from partwise.core.schedule import Arrived, Commit, Dispatch, Lost, ReplyInfo
from partwise.schedulers import FedAsync, FedBuff, FedCompass, FedFix, Tiered
from partwise.schedulers.choices import Weighted
from partwise.schedulers.flights import Flights, answered_, news_
from toy_clock import Clock, People

N = 6


def _there(client: int, now: float) -> float:
    """Client c is away for the last 4 of every 60 + c seconds."""
    since = now % (60 + client)
    return now if since < 56 + client else now - since + 60 + client


@pytest.mark.parametrize(
    "scheduler",
    [
        FedAsync(concurrency=N, versions=2000),
        FedBuff(buffer=2, concurrency=N, versions=1000),
        FedFix(5.0, versions=1000),
        FedCompass(1, 3, versions=1000),
        Tiered(tiers=N, cohort=1, versions=2000),
    ],
    ids=lambda part: type(part).__name__,
)
def test_clients_that_come_and_go_leave_no_alarms_behind(scheduler):
    """Each is waited for a day, and away for 4 seconds a minute; groups of `FedCompass` have alarms of their own."""
    clock = Clock(scheduler, People(range(N), _there), lambda client, steps, now: 1.0 + client).run()
    assert len(clock.of(Commit)) == scheduler.versions
    assert clock.now > 800
    assert clock.most_timers <= 2 * N


def test_an_alarm_that_was_set_for_later_rings_for_who_is_to_be_given_up_then():
    """Client 1 is asked at 0 and silent; client 0 is away from 10 to 20, so that a sooner alarm is set meanwhile."""

    def there(client, now):
        return 20.0 if client == 0 and 10 <= now < 20 else now

    def seconds(client, steps, now):
        return 4.0 if client == 0 or now else float("inf")

    scheduler = FedAsync(concurrency=2, versions=0, seconds=200.0, patience_seconds=100.0)
    clock = Clock(scheduler, People(range(2), there), seconds).run()
    given_up = [when for when, action in clock.log if type(action).__name__ == "GiveUp"]
    asked = [when for when, action in clock.log if type(action).__name__ == "Dispatch" and action.client == 1]
    assert given_up == [100.0]
    assert asked[:3] == [0.0, 100.0, 104.0]
    assert [when for when, action in clock.log if type(action).__name__ == "Dispatch" and action.client == 0][:6] == [
        *(0.0, 4.0, 8.0, 20.0, 24.0, 28.0)
    ]


def test_what_was_asked_before_is_not_what_is_waited_for():
    """Client 3 was given up and asked again at 100: what became of its task of 5 s is of no account."""
    reply = ReplyInfo(0, 3, 0, 1, 1)
    flights = Flights(flying={3: 100.0})
    assert not answered_(flights, Arrived(120.0, reply, 5.0))
    assert news_(flights, Lost(120.0, 3, 0, 5.0), FedAsync(1)) == ([], [], [], "")
    assert flights == Flights(flying={3: 100.0})
    assert answered_(flights, Arrived(130.0, reply, 100.0))
    assert news_(Flights(flying={3: 100.0}), Lost(130.0, 3, 1, 100.0), FedAsync(1)).lost == [3]


@pytest.mark.parametrize(("losses", "is_over"), [(1090, False), (1110, True)])
def test_a_run_ends_after_a_thousand_losses_and_twenty_for_each_client_at_work(losses, is_over):
    """One of six is lost, so that five are left: 1,100."""
    flights = Flights(flying=dict.fromkeys(range(6), 0.0), losses=losses)
    assert bool(news_(flights, Lost(1.0, 0, 0, 0.0), FedAsync(6)).end) is is_over


def test_who_is_never_chosen_does_not_stand_for_who_will_be_there():
    """Three are wanted, two of whom are there; the others have no weight, but for one who is away until 5 s."""
    people = People(range(5), lambda client, now: max(now, 5.0) if client == 4 else now)
    scheduler = FedAsync(concurrency=3, versions=9, choice=Weighted((1.0, 1.0, 0.0, 0.0, 1.0)))
    clock = Clock(scheduler, people, lambda client, steps, now: 2.0).run(events=200)
    assert clock.stopped == "done"
    asked = [(now, action.client) for now, action in clock.of(Dispatch)]
    assert min(now for now, client in asked if client == 4) == 5.0
    assert {client for _, client in asked} == {0, 1, 4}

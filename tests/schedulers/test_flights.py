from __future__ import annotations

import pytest

from partwise.core.schedule import Commit
from partwise.schedulers import FedAsync, FedBuff, FedCompass, FedFix, Tiered
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

"""Who is at work, for schedulers that do not wait for a cohort. Standard library only.

Whatever happens to one client costs the same however many there are: clients at work are kept in a dict in the order in
which they were asked, so that the next to be given up is the first, and one alarm stands for all of them.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from partwise.core.schedule import (
    Action,
    After,
    Arrived,
    Commit,
    Deadline,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    Skipped,
    Stop,
)
from partwise.schedulers.choice import Choice

__all__ = [
    "A_DAY",
    "LOOK_AGAIN",
    "NOBODY",
    "Counting",
    "Flights",
    "News",
    "Watches",
    "answered_",
    "ask_",
    "check_at_least",
    "check_end",
    "ending",
    "is_alone",
    "is_deserted",
    "news_",
    "resting_",
    "set_alarm_",
    "sleep_",
    "uncounted_",
]

A_DAY = 86_400.0
NOBODY = "no client is at work, and none will be available any more"
LOOK_AGAIN = -1  # among those who are asleep: then somebody else may be there
_LOSSES = 1000  # in a row, and 20 for each client at work, are the end of a run
_TIRED, _REST = 5, 0.01  # losses of one client since a reply came, after which it rests; of the patience with others


class Watches(Protocol):
    """What a scheduler says about its waiting."""

    @property
    def seconds(self) -> float: ...

    @property
    def patience_seconds(self) -> float: ...


class Counting(Protocol):
    """A state that counts commits."""

    version: int


@dataclass
class Flights:
    """Who is at work and what is waited for: part of a scheduler's state, changed in place.

    Args:
        flying: client -> when it was asked, the longest ago first.
        asleep: heap of (when, whom): those who are wanted and will not be available before.
        is_short: whether all who are neither at work nor asleep are of no use.
        chosen: the choice's state.
        turn: how often was chosen.
        alarms: number -> when it rings, of alarms that have not; the soonest was set last.
        num_alarms: how many were set.
        losses: tasks lost since a reply came.
        lost: client -> how many of them were its own.
        resting: client that is not asked for now -> until when.
    """

    flying: dict[int, float] = field(default_factory=dict)
    asleep: list[tuple[float, int]] = field(default_factory=list)
    is_short: bool = False
    chosen: Any = ()
    turn: int = 0
    alarms: dict[int, float] = field(default_factory=dict)
    num_alarms: int = 0
    losses: int = 0
    lost: dict[int, int] = field(default_factory=dict)
    resting: dict[int, float] = field(default_factory=dict)


class News(NamedTuple):
    """What an event that is no reply comes to.

    Args:
        lost: clients that were at work and will not answer.
        woken: who was asleep until now.
        actions: what is to be done first.
        end: why the run is over; empty while it is not.
    """

    lost: list[int]
    woken: list[int]
    actions: list[Action]
    end: str = ""


def check_at_least(part: object, **least: float) -> None:
    """Refuse settings below a bound, and NaN."""
    for name, bound in least.items():
        value = getattr(part, name)
        if isinstance(value, str):
            raise TypeError(f"{type(part).__name__}({name}={value!r}): must be a number, got a str. Give one.")
        if not value >= bound:
            raise ValueError(f"{type(part).__name__}({name}={value}): must be at least {bound}, got {value}. Raise it.")


def check_end(part: Watches, versions: int) -> None:
    """Refuse a run that would never end, and patience that has none."""
    check_at_least(part, versions=0)
    name = type(part).__name__
    for what, remedy in (("seconds", "inf for no limit"), ("patience_seconds", "A day is usual")):
        value = getattr(part, what)
        if not value > 0:
            raise ValueError(f"{name}({what}={value}): must be above 0, got {value}. Give seconds; {remedy}.")
    if math.isinf(part.patience_seconds):
        raise ValueError(
            f"{name}(patience_seconds=inf): must be finite, got inf. Lost clients would be waited for ever."
        )
    if not versions and math.isinf(part.seconds):
        raise ValueError(f"{name}(versions=0, seconds=inf): must end some time, got no limit. Set one of them.")


def uncounted_(state: Counting, event: Event) -> bool:
    """Whether an event says that a commit came to nothing, which is no version then."""
    if not isinstance(event, Skipped):
        return False
    state.version -= 1
    return True


def ending(actions: list[Action], versions: int, made: int) -> list[Action]:
    """The actions, of which a commit that makes the last version ends the run.

    Whether it makes one is known when its rule has seen the updates, or its exchange is over. So what would follow is
    said as well, after the end.
    """
    if not 0 < versions <= made:
        return actions
    last: list[Action] = []
    for action in actions:
        last += [action, Stop(version=versions)] if isinstance(action, Commit) else [action]
    return last


def is_deserted(flights: Flights) -> bool:
    """Whether nobody is at work or thought of: nothing will happen any more."""
    return not flights.flying and not flights.asleep


def resting_(flights: Flights, now: float) -> dict[int, float]:
    """Who rests, and until when: those who were lost again and again.

    Otherwise one client that is lost as soon as it is asked would be the end of a run before others can answer.
    """
    if flights.resting:
        flights.resting = {client: until for client, until in flights.resting.items() if now < until}
    return flights.resting


def is_alone(flights: Flights) -> bool:
    """Whether there is nothing to wait for but that somebody has rested: who rests may be asked then."""
    rests = set(flights.resting.values())
    return not flights.flying and all(when in rests for when, _ in flights.asleep)


def ask_(flights: Flights, now: float, client: int, steps: int, group: int = 0) -> Dispatch:
    """Ask a client that is not at work."""
    flights.flying[client] = now
    return Dispatch(client, steps, group)


def answered_(flights: Flights, event: Arrived) -> bool:
    """Whether a reply was waited for; its client is free then."""
    _, reply, began = event
    if began < flights.flying.get(reply.client, math.inf):
        return False
    del flights.flying[reply.client]
    flights.losses = 0
    flights.lost.clear()
    return True


def sleep_(flights: Flights, when: float, whom: int) -> None:
    """Think of somebody at that time; never, if it is never."""
    if when < math.inf:
        heapq.heappush(flights.asleep, (when, whom))


def news_(flights: Flights, event: Event, part: Watches, choice: Choice | None = None) -> News:
    """Take the beginning, a loss or the alarm in; any other deadline comes to nothing."""
    match event:
        case Lost(_, client, _, began) if client in flights.flying and flights.flying[client] <= began:
            del flights.flying[client]
            lost, woken = [client], []
        case Deadline(now, tag) if -tag in flights.alarms:
            del flights.alarms[-tag]
            if now >= part.seconds:
                return News([], [], [], f"{part.seconds:g} seconds are over")
            lost, woken = _overdue_(flights, now, part.patience_seconds), _woken_(flights, now)
        case _:
            return News([], [], [])
    flights.losses += len(lost)
    for client in lost:
        flights.lost[client] = times = flights.lost.get(client, 0) + 1
        if times >= _TIRED:
            flights.resting[client] = event.now + _REST * part.patience_seconds
    if choice is not None:
        for client in lost:
            flights.chosen = choice.lost(flights.chosen, client)
    actions: list[Action] = [GiveUp(tuple(lost))] if lost and isinstance(event, Deadline) else []
    limit = _LOSSES + 20 * len(flights.flying)
    end = f"{flights.losses} tasks in a row were lost, without a reply" if flights.losses > limit else ""
    return News(lost, woken, actions, end)


def _overdue_(flights: Flights, now: float, patience: float) -> list[int]:
    """Clients that were asked too long ago."""
    overdue = []
    for client, asked in flights.flying.items():
        if asked + patience > now:
            break
        overdue.append(client)
    for client in overdue:
        del flights.flying[client]
    return overdue


def _woken_(flights: Flights, now: float) -> list[int]:
    """Those whose time has come. Where it is time to look again, nobody is asleep any more."""
    woken = []
    while flights.asleep and flights.asleep[0][0] <= now:
        woken.append(heapq.heappop(flights.asleep)[1])
    if LOOK_AGAIN in woken:
        flights.asleep.clear()
        flights.is_short = False
        return []
    return woken


def set_alarm_(flights: Flights, now: float, part: Watches) -> list[Action]:
    """Be woken when somebody is to be given up or asked, or when the run ends; nothing, if that is arranged for.

    All are waited for as long, and no alarm is set for later than that, so that only who sleeps can be due before it.
    One that was set for later still counts when a sooner one has rung: no other is set beside it.
    """
    rings = next(reversed(flights.alarms.values()), math.inf)
    if flights.alarms and not (flights.asleep and flights.asleep[0][0] < rings):
        return []
    asked = next(iter(flights.flying.values()), now)
    due = min(flights.asleep[0][0] if flights.asleep else math.inf, part.seconds)
    if not flights.flying and math.isinf(due):
        return []
    due = min(due, asked + part.patience_seconds)
    flights.num_alarms += 1
    flights.alarms[flights.num_alarms] = due
    return [After(max(0.0, due - now), -flights.num_alarms)]

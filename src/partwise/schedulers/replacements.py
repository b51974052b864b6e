"""Whom to ask in the place of those who have answered. Standard library only.

Notation: N clients.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from partwise.core.schedule import Action, Dispatch, Roster
from partwise.schedulers.choice import Choice, picked, soonest
from partwise.schedulers.flights import LOOK_AGAIN, Flights, Watches, is_alone, resting_, sleep_

__all__ = ["Asks", "Some", "check_concurrency", "refill_"]

_MANY = 10_000  # clients, of which not all can be looked at


class Asks(Watches, Protocol):
    """What a scheduler says about whom it asks."""

    @property
    def concurrency(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def choice(self) -> Choice: ...


@dataclass(frozen=True)
class Some:
    """A roster of some of the clients.

    Args:
        clients: ascending.
        whole: of all of them.
    """

    clients: Sequence[int]
    whole: Roster

    @property
    def seed(self) -> int:
        return self.whole.seed

    def next_available(self, client: int, now: float) -> float:
        return self.whole.next_available(client, now)

    def examples(self, client: int) -> int:
        return self.whole.examples(client)


def check_concurrency(part: Asks, roster: Roster) -> None:
    """Refuse to have more clients at work than there are."""
    if part.concurrency > len(roster.clients):
        raise ValueError(
            f"{type(part).__name__}(concurrency={part.concurrency}): must be at most the population, got a population "
            f"of {len(roster.clients)}. Lower it or add clients."
        )


def refill_(
    flights: Flights,
    part: Asks,
    now: float,
    roster: Roster,
    freed: Collection[int],
    held: int = 0,
    *,
    without: Collection[int] = (),
) -> list[Action]:
    """Ask others until as many are at work as shall be, or all who are there.

    Args:
        flights: changed in place.
        part: how many, and whom.
        now: seconds.
        roster: the population.
        freed: who has just come to be free.
        held: how many fewer shall be at work for now.
        without: who is not asked, though not at work; nor is who rests.

    Where more are wanted than are there, only those who come to be free, or awake, can be of use: nobody looks at all
    the others for each of them.
    """
    flying = flights.flying
    wanted = part.concurrency - held - len(flying)
    if wanted <= 0:
        return []
    resting = resting_(flights, now)
    found = _found_(flights, part, now, roster, freed, wanted, without={*without, *resting}, is_new=bool(resting))
    if resting and not found and not without and is_alone(flights):
        flights.is_short = False
        found = _found_(flights, part, now, roster, freed, wanted, without=(), is_new=True)
        for client in found:
            resting.pop(client, None)
    if resting and len(found) < wanted:
        again = min(resting.values()), LOOK_AGAIN
        if again not in flights.asleep:
            sleep_(flights, *again)
    for client in found:
        flying[client] = now
    steps = part.steps
    return [Dispatch(client, steps) for client in found]


def _found_(
    flights: Flights,
    part: Asks,
    now: float,
    roster: Roster,
    freed: Collection[int],
    wanted: int,
    *,
    without: Collection[int],
    is_new: bool,
) -> Sequence[int]:
    """Whom to ask; `is_new`: others may be of use than those who come to be free."""
    busy: Collection[int] = flights.flying.keys() | without if without else flights.flying
    if flights.is_short or (not is_new and len(roster.clients) - len(busy) <= wanted == len(freed)):
        found = _among_(flights, part, now, roster, freed, wanted, busy=busy)
        if len(found) == wanted:
            flights.is_short = False
            flights.asleep.clear()
        return found
    flights.asleep.clear()
    found = _chosen_(flights, part, wanted, now, roster, busy=busy)
    if len(found) < wanted:
        _wait_(flights, now, roster, without={*busy, *found}, missing=wanted - len(found))
    return found


def _chosen_(
    flights: Flights, part: Asks, wanted: int, now: float, roster: Roster, *, busy: Collection[int]
) -> Sequence[int]:
    turn, flights.turn = flights.turn, flights.turn + 1
    found, flights.chosen = picked(part.choice, flights.chosen, wanted, turn=turn, now=now, roster=roster, busy=busy)
    return found


def _among_(
    flights: Flights,
    part: Asks,
    now: float,
    roster: Roster,
    freed: Iterable[int],
    wanted: int,
    *,
    busy: Collection[int],
) -> Sequence[int]:
    """Some of those who have just come to be free; who is not there is thought of later."""
    there, may_pick = [], part.choice.may_pick
    for client in sorted({client for client in freed if client not in busy and may_pick(client, roster)}):
        when = roster.next_available(client, now)
        if when <= now:
            there.append(client)
        else:
            sleep_(flights, when, client)
    flights.is_short = len(there) < wanted
    return _chosen_(flights, part, wanted, now, Some(there, roster), busy=busy) if len(there) > wanted else there


def _wait_(flights: Flights, now: float, roster: Roster, without: Collection[int], missing: int) -> None:
    """Think of those who will be available next, as many as are missing, and after them of all again."""
    flights.is_short = True
    if len(roster.clients) > _MANY:
        sleep_(flights, soonest(roster, now, flights.turn), LOOK_AGAIN)
        return
    coming = ((roster.next_available(c, now), c) for c in roster.clients if c not in without)
    flights.asleep = heapq.nsmallest(missing + 1, (entry for entry in coming if now < entry[0] < math.inf))
    if len(flights.asleep) > missing:
        flights.asleep[-1] = (flights.asleep[-1][0], LOOK_AGAIN)

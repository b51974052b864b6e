"""What a choice of clients is, how clients are drawn by weight, and when to look again. Standard library only.

Notation: N clients.
"""

from __future__ import annotations

import heapq
import math
import random
import reprlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, Protocol

from partwise.core.schedule import ReplyInfo, Roster

__all__ = ["Choice", "picked", "require_exact", "sample", "soonest"]

_LOOKS = 10_000  # so many clients can be asked about in some tens of milliseconds


class Choice(Protocol):
    """Picks clients among those that are available and not busy; a frozen part without state of its own.

    Its state is a plain tree and part of the scheduler's; a call consumes the state that it is given. Of a choice that
    derives from this class, only `pick` must be written.

    `is_exact`: False for a choice that takes `count` for an expectation and may pick more, or none. `draws`: how, in
    the words of `Sampling.kind`; None for a choice that looks at what clients keep private.
    """

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def draws(self) -> Literal["poisson", "fixed", "public"] | None:
        return None

    def init(self, roster: Roster) -> Any:
        return ()

    def may_pick(self, client: int, roster: Roster) -> bool:
        """Whether it ever picks a client: those who come to be free where too few are may be asked without it."""
        return True

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        """Different clients, ascending: `count` of them, or fewer where there are no more.

        Args:
            state: what `init` or the last call gave.
            count: how many, >= 1.
            turn: how many times before the scheduler has picked; chance is derived from it.
            now: seconds on the runtime's clock.
            roster: the population.
            busy: clients that are not to be picked.
        """
        ...

    def heard(self, state: Any, reply: ReplyInfo, seconds: float) -> Any:
        """A reply came, so many seconds after its client was asked."""
        return state

    def lost(self, state: Any, client: int) -> Any:
        """A client did not answer."""
        return state


def picked(
    choice: Choice, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
) -> tuple[tuple[int, ...], Any]:
    """What a choice picks; what no scheduler could ask is refused.

    That a client is away is not: it may have gone since the choice looked.

    Raises:
        ValueError: it names the choice, and the rule.
    """
    given = choice.pick(state, count, turn=turn, now=now, roster=roster, busy=busy)
    if not isinstance(given, tuple) or len(given) != 2:
        raise _mispicked(choice, "the clients and its next state, a tuple of two", given)
    found, state = given
    if not isinstance(found, tuple | list):
        raise _mispicked(choice, "its clients as a tuple", found)
    if not {int} >= set(map(type, found)):
        raise _mispicked(choice, "clients by numbers, as int() makes them", found)
    if len(found) > len(set(found)):
        raise _mispicked(choice, "different clients", found)
    if len(found) > count and choice.is_exact:
        raise _mispicked(choice, f"at most the {count} clients that are wanted, as a choice that is_exact", found)
    if busy and any(client in busy for client in found):
        raise _mispicked(choice, "no clients that are busy", found)
    return tuple(found), state


def _mispicked(choice: Choice, words: str, got: object) -> ValueError:
    """What is said of a choice that gives something else than `words` tell."""
    return ValueError(f"{choice!r}: pick must give {words}, got {reprlib.repr(got)}. See help(Choice.pick).")


def require_exact(part: str, choice: Choice) -> None:
    """Refuse a choice whose number is chance, where a scheduler counts on it."""
    if not choice.is_exact:
        raise ValueError(
            f"{part}(choice={choice!r}): must pick as many clients as are wanted, got one that picks a random number. "
            "Use Uniform(), or Synchronous, which waits for however many there are."
        )


def sample(chance: random.Random, weighted: Iterable[tuple[int, float]], count: int) -> list[int]:
    """Draws without replacement, each in proportion to the weight among those that are left; in the order drawn.

    Args:
        chance: where randomness comes from.
        weighted: clients and their weights, >= 0. One of weight 0 is drawn when no other is left.
        count: how many; fewer where there are no more.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 2006,
        algorithm A; with exponential times in place of u^(1/w), which order the clients alike.
    """
    keys = (
        (0, chance.expovariate(weight), client) if weight > 0 else (1, chance.random(), client)
        for client, weight in weighted
    )
    return [client for *_, client in heapq.nsmallest(count, keys)]


def soonest(roster: Roster, now: float, turn: int) -> float:
    """The first moment after `now` at which somebody will be available who is not; inf for never.

    Exact for up to ten thousand clients. Of more, ten thousand at random are looked at, so that it may be too late; all
    of them only where none of these will ever be available.
    """
    clients = roster.clients
    if len(clients) <= _LOOKS:
        return _first(roster, clients, now)
    some = random.Random(f"{roster.seed}|soonest|{turn}").sample(clients, _LOOKS)
    found = _first(roster, some, now)
    return _first(roster, clients, now) if found == math.inf else found


def _first(roster: Roster, clients: Sequence[int], now: float) -> float:
    moments = (roster.next_available(client, now) for client in clients)
    return min((moment for moment in moments if moment > now), default=math.inf)

"""Whom a scheduler asks. Standard library only.

Notation: N clients, K of them picked.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from typing import Any, Literal

from partwise.core.schedule import ReplyInfo, Roster, are_there
from partwise.schedulers.choice import Choice, sample
from partwise.schedulers.oort import Oort
from partwise.schedulers.replacements import Some

__all__ = ["Choice", "Oort", "Poisson", "Stalest", "Uniform", "Weighted"]

_MASK, _GOLDEN, _SPREAD = 2**64 - 1, 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
_TRIES = 16
_LOOKS = 10_000  # so many clients can be asked about in some tens of milliseconds


@dataclass(frozen=True)
class Uniform(Choice):
    """Each available client equally likely, without replacement; the same for every algorithm under one seed.

    A single client, as asynchronous schedulers want it, is drawn by a hash of seed and turn, which is ten times as
    quick as a generator; who it is does not follow from what more of them would be in the same turn.

    Where few are available, it looks at ten thousand clients, or twenty times as many as are wanted; not at all of a
    large population.

    Source: of the hash, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
        mix64variant13.
    """

    @property
    def draws(self) -> Literal["poisson", "fixed", "public"] | None:
        return "fixed"

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        clients = roster.clients
        if count == 1:
            available, at, total = roster.next_available, roster.seed * _SPREAD + (turn + 1) * _GOLDEN, len(clients)
            for _ in range(_TRIES if total else 0):
                at = _mixed(at)
                client = clients[at * total >> 64]
                if client not in busy and available(client, now) <= now:
                    return (client,), state
                at += _GOLDEN
        chance = random.Random(f"{roster.seed}|cohort|{turn + 1}")
        first = chance.sample(clients, min(count, len(clients)))
        found = _free(first, now, roster, busy)
        if len(found) < count and len(first) < len(clients):
            others = islice(_shuffled(clients, chance, first), max(_LOOKS, 20 * count))
            while len(found) < count and (some := list(islice(others, count - len(found)))):
                found += _free(some, now, roster, busy)
        return tuple(sorted(found)), state


@dataclass(frozen=True)
class Poisson(Choice):
    """Each client independently with probability count / N, if it is available; so nobody at all now and then.

    The sampling of which privacy amplification speaks. It looks at as many clients as it draws. The guarantee holds
    against those who do not know whom it drew: outside a simulation the seed is a secret.

    Source: Abadi et al., "Deep learning with differential privacy", CCS 2016, arXiv:1607.00133, algorithm 1.
    """

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def draws(self) -> Literal["poisson", "fixed", "public"] | None:
        return "poisson"

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        clients = roster.clients
        chance = random.Random(f"{roster.seed}|poisson|{turn + 1}")
        found: list[int] = []
        rate, at = min(1.0, count / len(clients)), -1
        stays = math.log1p(-rate) if rate < 1 else -math.inf
        while True:  # from one that is drawn to the next: how many are passed over has a geometric distribution
            at += 1 + (int(math.log(1 - chance.random()) / stays) if rate < 1 else 0)
            if at >= len(clients):
                return tuple(found), state
            if clients[at] not in busy and roster.next_available(clients[at], now) <= now:
                found.append(clients[at])


def _mixed(number: int) -> int:
    """64 bits, each of which depends on all of the number's lowest 64."""
    number &= _MASK
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def _free(clients: Sequence[int], now: float, roster: Roster, busy: Collection[int]) -> list[int]:
    """Those of some clients that are available and not busy."""
    free = [client for client in clients if client not in busy] if busy else clients
    return list(compress(free, are_there(roster, free, now)))


def _shuffled(clients: Sequence[int], chance: random.Random, without: Sequence[int]) -> Iterator[int]:
    """The other clients in random order; of the first, few are looked at."""
    seen = set(without)
    for _ in range(len(clients)):
        if 2 * len(seen) > len(clients):
            break
        client = clients[chance.randrange(len(clients))]
        if client not in seen:
            seen.add(client)
            yield client
    left = [client for client in clients if client not in seen]
    chance.shuffle(left)
    yield from left


@dataclass(frozen=True)
class Weighted(Choice):
    """Available clients in proportion to their examples or to given weights, without replacement.

    One after another: each is drawn with probability w_i over the sum of w_j of those that could still be. So with
    K > 1 the chance of being among the picked is not proportional to w_i, most of all where K is not small beside N.
    A client of weight 0 is never asked.

    Args:
        weights: w_i, finite and >= 0, one per client in the order of their numbers from 0; () for its examples.

    Source: Li et al., "On the convergence of FedAvg on non-IID data", ICLR 2020, arXiv:1907.02189, scheme I.
    Differs: without replacement; scheme I may draw a client twice and then counts it twice.
    """

    weights: tuple[float, ...] = ()

    @property
    def draws(self) -> Literal["poisson", "fixed", "public"] | None:
        return "public" if self.weights else None  # how many examples a client has is its own affair

    def __post_init__(self) -> None:
        for at, weight in enumerate(self.weights):
            if not (0 <= weight < math.inf):
                raise ValueError(f"Weighted(weights): must be finite and at least 0, got {weight} at {at}. Correct it.")
        if self.weights and not any(self.weights):
            raise ValueError("Weighted(weights): one of them must be greater than 0, got only 0. Use Uniform().")

    def init(self, roster: Roster) -> Any:
        """The largest weight; the only pass over all clients."""
        everybody = (roster.whole if isinstance(roster, Some) else roster).clients
        if self.weights and len(self.weights) != len(everybody):
            raise ValueError(
                f"Weighted(weights): must be one per client, got {len(self.weights)} for a population of "
                f"{len(everybody)}. Give as many, or leave them out to count examples."
            )
        return max(self.weights or map(roster.examples, roster.clients), default=0)

    def may_pick(self, client: int, roster: Roster) -> bool:
        return self._weight(client, roster) > 0

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        clients, most = roster.clients, state
        chance = random.Random(f"{roster.seed}|weighted|{turn + 1}")
        found: set[int] = set()

        def is_free(client: int) -> bool:
            return client not in found and client not in busy and roster.next_available(client, now) <= now

        # Rejection is the same drawing, client by client, and looks at few of them; when it stops says nothing about
        # who comes next, so that what is left can be drawn the long way.
        for _ in range(min(_TRIES * count, len(clients)) if most else 0):
            at = chance.randrange(len(clients))
            if chance.random() * most < self._weight(clients[at], roster) and is_free(clients[at]):
                found.add(clients[at])
                if len(found) == count:
                    return tuple(sorted(found)), state
        weighted = ((client, self._weight(client, roster)) for client in clients if is_free(client))
        found.update(sample(chance, [(c, w) for c, w in weighted if w > 0], count - len(found)))
        return tuple(sorted(found)), state

    def _weight(self, client: int, roster: Roster) -> float:
        return self.weights[client] if self.weights else roster.examples(client)


@dataclass(frozen=True)
class Stalest(Choice):
    """Those available clients that took part the longest ago.

    The K with the smallest R_i, the turn in which i last took part, -1 for never; ties go to the smaller number. So
    there is no chance in it, and everybody has a turn once in N/K turns, as far as they are available. A client that
    was asked and lost has not taken part: it is asked again before others, so that one that is always lost keeps its
    place.

    Source: Yan et al., "Distributed non-convex optimization under intermittent client availability" (FedLaAvg),
        INFORMS Journal on Computing 2023, arXiv:2002.07399, algorithm 1.
    """

    @property
    def draws(self) -> Literal["poisson", "fixed", "public"] | None:
        return "public"

    def init(self, roster: Roster) -> Any:
        """What is kept of those that took part.

        last: client -> R_i. queue: a heap of [R_i, i]; an entry counts while `last` says the same. before: of clients
        whose answer is out, R_i before. unused: how many of the first clients have been asked, whatever came of it.
        """
        return {"last": {}, "queue": [], "before": {}, "unused": 0}

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        last, queue, clients = state["last"], state["queue"], roster.clients
        while state["unused"] < len(clients) and clients[state["unused"]] in last:
            state["unused"] += 1
        found: set[int] = set()
        passed: list[list[int]] = []
        for entry in _stalest(state, clients):
            client = entry[1]
            if client not in busy and roster.next_available(client, now) <= now:
                found.add(client)
                if len(found) == count:
                    break
            elif client in last:
                passed.append(entry)
        for client in found:
            state["before"][client] = last.get(client, -1)
            last[client] = turn
            heapq.heappush(queue, [turn, client])
        for entry in passed:
            heapq.heappush(queue, entry)
        return tuple(sorted(found)), state

    def heard(self, state: Any, reply: ReplyInfo, seconds: float) -> Any:
        state["before"].pop(reply.client, None)
        return state

    def lost(self, state: Any, client: int) -> Any:
        turn = state["before"].pop(client, None)
        if turn is not None:
            state["last"][client] = turn
            heapq.heappush(state["queue"], [turn, client])
        return state


def _stalest(state: Any, clients: Sequence[int]) -> Iterator[list[int]]:
    """[R_i, i] in ascending order: the queue, which is emptied on the way, and among it those who never were asked."""
    last, queue = state["last"], state["queue"]
    unused = (clients[at] for at in range(state["unused"], len(clients)) if clients[at] not in last)
    for client in unused:
        while queue and queue[0] < [-1, client]:
            entry = heapq.heappop(queue)
            if last[entry[1]] == entry[0]:
                yield entry
        yield [-1, client]
    while queue:
        entry = heapq.heappop(queue)
        if last[entry[1]] == entry[0]:
            yield entry

"""Populations as a scheduler sees them, and a clock for what it does."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from partwise.core.schedule import After, Arrived, Commit, Deadline, Dispatch, GiveUp, Lost, ReplyInfo, Started, Stop


@dataclass
class Roster:
    """A population.

    clients: their numbers, or how many. away: client, now -> when it is available. asked: how often that was asked.
    """

    clients: Any
    seed: int = 3
    away: Callable[[int, float], float] = lambda _client, now: now
    sizes: Callable[[int], int] = lambda client: 5 + client
    asked: int = 0

    def __post_init__(self) -> None:
        self.clients = range(self.clients) if isinstance(self.clients, int) else self.clients

    def next_available(self, client: int, now: float) -> float:
        self.asked += 1
        return self.away(client, now)

    def examples(self, client: int) -> int:
        return self.sizes(client)


def asked(actions: Sequence[Any]) -> list[int]:
    return [a.client for a in actions if isinstance(a, Dispatch)]


@dataclass
class Play:
    """Plays a scheduler on a clock.

    seconds: client, task -> how long it takes; negative: lost after that; inf: silent for ever.
    """

    scheduler: Any
    roster: Roster
    seconds: Callable[[int, int], float]
    commits: list[tuple[float, list[int]]] = field(default_factory=list)
    cohorts: list[tuple[float, list[int]]] = field(default_factory=list)
    given_up: list[tuple[float, list[int]]] = field(default_factory=list)
    events: int = 0
    most_timers: int = 0
    reason: str = ""
    ended: float = -1.0

    def run(self, most: int = 100_000) -> Play:
        queue: list[Any] = [(0.0, 0, Started(0.0))]
        numbers, ids, flying = count(1), count(), {}
        state = self.scheduler.init(self.roster)
        while queue and not self.reason and self.events < most:
            now, _, event = heapq.heappop(queue)
            if isinstance(event, Arrived | Lost):
                id = event.id if isinstance(event, Lost) else event.reply.id
                if flying.get(event.client if isinstance(event, Lost) else event.reply.client) != id:
                    continue
                flying = {c: i for c, i in flying.items() if i != id}
            self.events += 1
            state, actions = self.scheduler.step(state, event, self.roster)
            for action in actions:
                match action:
                    case Dispatch(client, steps, group):
                        assert client not in flying
                        id = flying[client] = next(ids)
                        seconds = self.seconds(client, id)
                        when = now + abs(seconds)
                        info = ReplyInfo(id, client, len(self.commits), steps or 3, 7, 1.0, group)
                        event = Lost(when, client, id, now) if seconds < 0 else Arrived(when, info, now)
                        if when < math.inf:
                            heapq.heappush(queue, (when, next(numbers), event))
                    case Commit(replies):
                        self.commits.append((now, [r.client for r in replies]))
                    case GiveUp(clients):
                        self.given_up.append((now, list(clients)))
                        flying = {c: i for c, i in flying.items() if c not in clients}
                    case After(after, tag):
                        heapq.heappush(queue, (now + after, next(numbers), Deadline(now + after, tag)))
                    case Stop(reason, version) if len(self.commits) >= version:
                        self.reason, self.ended = reason, now
                        break
            if asked(actions):
                self.cohorts.append((now, asked(actions)))
            self.most_timers = max(self.most_timers, sum(isinstance(e, Deadline) for _, _, e in queue))
        return self

"""A clock for schedulers alone: events in the order they were scheduled, clients of a given pace, no tensor."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from partwise.core.schedule import (
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Dispatch,
    GiveUp,
    Lost,
    ReplyInfo,
    Scheduler,
    Started,
    Stop,
)


@dataclass
class People:
    """A roster; `there` says from when on a client could answer, if not at any time."""

    clients: Sequence[int]
    there: Callable[[int, float], float] = lambda client, now: now
    seed: int = 5

    def next_available(self, client: int, now: float) -> float:
        return self.there(client, now)

    def examples(self, client: int) -> int:
        return 3 + client


@dataclass
class Clock:
    """Runs a scheduler.

    seconds: (client, steps, now) -> how long a task takes; inf for never, negative for lost after so long.
    committed: called with every commit.
    """

    scheduler: Scheduler
    people: People
    seconds: Callable[[int, int, float], float]
    committed: Callable[[float, Commit], None] | None = None
    log: list[tuple[float, Any]] = field(default_factory=list)
    version: int = 0
    stopped: str = ""
    now: float = 0.0
    state: Any = None
    most_timers: int = 0

    def __post_init__(self) -> None:
        self.queue: list[tuple[float, int, Any]] = []
        self.number = self.next_id = self.timers = 0
        self.in_flight: dict[int, tuple[int, float]] = {}  # task -> client, when asked
        self.known: dict[int, ReplyInfo] = {}  # arrived, neither committed nor discarded
        self.state = self.scheduler.init(self.people)
        self.push(0.0, Started(0.0))

    def push(self, when: float, event: Any) -> None:
        heapq.heappush(self.queue, (when, self.number, event))
        self.number += 1

    def run(self, until: float = math.inf, events: int = 100_000) -> Clock:
        while self.queue and not self.stopped and self.queue[0][0] <= until and events:
            events -= 1
            self.now, _, event = heapq.heappop(self.queue)
            if isinstance(event, Deadline):
                self.timers -= 1
            if isinstance(event, Arrived | Lost):
                id = event.reply.id if isinstance(event, Arrived) else event.id
                if self.in_flight.pop(id, None) is None:
                    continue  # given up
                if isinstance(event, Arrived):
                    self.known[id] = event.reply
            self.log.append((self.now, event))
            self.state, actions = self.scheduler.step(self.state, event, self.people)
            for action in actions:
                if self.stopped:
                    break
                self.log.append((self.now, action))
                self.act(action)
        return self

    def act(self, action: Any) -> None:
        match action:
            case Dispatch(client, steps, group):
                assert all(c != client for c, _ in self.in_flight.values()), "asked twice"
                assert self.people.next_available(client, self.now) <= self.now
                self.ask(client, steps, group)
            case Commit(replies, scales):
                assert len(scales) in (0, len(replies))
                for reply in replies:
                    assert self.known.pop(reply.id) == reply
                if self.committed:
                    self.committed(self.now, action)
                self.version += 1
            case Discard(replies):
                for reply in replies:
                    del self.known[reply.id]
            case GiveUp(clients):
                self.in_flight = {id: f for id, f in self.in_flight.items() if f[0] not in clients}
            case After(seconds, tag):
                assert seconds >= 0
                self.timers += 1
                self.most_timers = max(self.timers, self.most_timers)
                self.push(self.now + seconds, Deadline(self.now + seconds, tag))
            case Stop(reason, version) if self.version >= version:
                self.stopped = reason

    def ask(self, client: int, steps: int, group: int) -> None:
        id, self.next_id = self.next_id, self.next_id + 1
        self.in_flight[id] = client, self.now
        took = self.seconds(client, steps, self.now)
        if took < 0:
            self.push(self.now - took, Lost(self.now - took, client, id, self.now))
        elif took < math.inf:
            info = ReplyInfo(id, client, self.version, steps or 1, 3 + client, group=group)
            self.push(self.now + took, Arrived(self.now + took, info, self.now))

    def of(self, kind: type) -> list[tuple[float, Any]]:
        return [(when, entry) for when, entry in self.log if isinstance(entry, kind)]


def paced(paces: Mapping[int, float] | Sequence[float]) -> Callable[[int, int, float], float]:
    """Tasks take their steps times the pace; those without steps take one."""
    return lambda client, steps, now: (steps or 1) * paces[client]

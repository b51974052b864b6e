"""The clock alone: a scheduler, its clients' speed, availability and fates, and no training.

It tells in seconds what a run would take in days, and a million clients cost it no more than a thousand.
"""

from __future__ import annotations

import gc
import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import chain, count, groupby, repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from partwise.core.algorithm import ServerState, Task
from partwise.core.codec import encoded_size
from partwise.core.errors import CompositionError
from partwise.core.plan import Trained
from partwise.core.population import Client, Dataset, Population, Profile, Roll
from partwise.core.program import SERVER, Effect, Message, NodeId, Send, Work
from partwise.core.schedule import (
    Accept,
    Action,
    After,
    Arrived,
    Commit,
    Deadline,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    ReplyInfo,
    Scheduler,
    Started,
    Stop,
)
from partwise.programs.client import ClientProgram
from partwise.programs.messages import Fetch, Held, Reply, Trouble
from partwise.programs.star import Star

__all__ = ["Cost", "Costs", "Rehearsed", "costs_of", "rehearse"]

_new, _NO_REPORT = tuple.__new__, ReplyInfo._field_defaults["report"]
_MANY = 32  # tasks, from which on arrays are quicker
_AT_ONE_INSTANT = 1_000_000  # events; a scheduler that acts so often without time passing never ends


class Cost(NamedTuple):
    """What a task costs a client.

    Args:
        steps: local steps.
        examples: it has.
        task: bytes of the message that asks it.
        fetch: bytes of its request for its part.
        held: bytes of the part.
        reply: bytes of the reply.
        trouble: bytes of the message that tells of a loss.
    """

    steps: int
    examples: int = 1
    task: int = 0
    fetch: int = 0
    held: int = 0
    reply: int = 0
    trouble: int = 0


Costs = Callable[[Dispatch], Cost]


@dataclass
class Rehearsed:
    """What happened.

    Args:
        reason: why it ended.
        seconds: on the clock, at the end.
        events: that the scheduler was given.
        dispatched: tasks.
        lost: stage -> tasks lost there, as the server hears of them; `deadline` where it gave one up before.
        downlink: bytes to clients.
        uplink: bytes from clients.
        commits: the moment of each commit.
        staleness: staleness -> committed replies that had it.
        committed: client -> its replies that were committed; who had none is not in it.
    """

    reason: str = "nothing left to do"
    seconds: float = 0.0
    events: int = 0
    dispatched: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    downlink: int = 0
    uplink: int = 0
    commits: array[float] = field(default_factory=lambda: array("d"))
    staleness: Counter[int] = field(default_factory=Counter)
    committed: Counter[int] = field(default_factory=Counter)


def rehearse(
    scheduler: Scheduler,
    population: Population,
    costs: Costs,
    *,
    seed: int = 0,
    until: float = math.inf,
    max_events: int = 0,
) -> Rehearsed:
    """Run a scheduler on the virtual clock, with replies that take the time they would take and hold nothing.

    Times are those of a simulated run, but for what depends on training: losses are 0, reports are empty, every update
    is accepted, and a client's profile is that of the moment it is asked.

    Args:
        scheduler: who works, when, and what is committed together.
        population: how fast the clients are, when they are there, what becomes of their tasks.
        costs: of a task.
        seed: as of an experiment.
        until: seconds on the clock.
        max_events: after so many it ends; 0 for no bound.

    Raises:
        CompositionError: the scheduler asks a client that is busy, or for two tasks at once, or acts without end at one
            instant; or it goes by measured links, of which a rehearsal has none.
        ValueError: `until` is not a number, or below 0; or `max_events` is below 0.

    Example:
        >>> from partwise.populations import ArrayPopulation, Constant
        >>> import torch
        >>> data = {"x": torch.zeros(4)}, torch.arange(5)
        >>> slow = ArrayPopulation(*data, profiles=Constant(seconds_per_step=0.5))
        >>> from partwise.schedulers import Synchronous
        >>> rehearse(Synchronous(cohort=2, rounds=3), slow, lambda task: Cost(steps=4)).seconds
        6.0
    """
    for name, value in (("until", until), ("max_events", max_events)):
        if not value >= 0:
            raise ValueError(f"rehearse({name}={value}): must be at least 0, got {value}. Leave it out for no bound.")
    if scheduler.measures:
        raise CompositionError(
            f"{scheduler!r}: chooses by the bytes and times of replies, which are not rehearsed. Run it; or rehearse "
            "the scheduler inside, with one compressor."
        )
    gc.freeze()  # what there is already, a million clients perhaps, is not looked through again and again
    try:
        return _Rehearsal(scheduler, population, costs, seed).run(until, max_events or math.inf)
    finally:
        gc.unfreeze()


# Plain tuples: they are made for every task, and take a quarter of the time.
_Course = tuple[str, float, float]  # the stage in which it is lost, or ``; when the server hears of it; when it fetched
# Its entry in the queue, its number, the stage, when its client was asked and when it fetched, the version when it was
# asked, what it costs, its group.
_Flight = tuple[int, int, str, float, float, int, Cost, int]


class _Rehearsal:
    def __init__(self, scheduler: Scheduler, population: Population, costs: Costs, seed: int) -> None:
        self.found = Rehearsed()
        self._scheduler, self._population, self._costs = scheduler, population, costs
        self._roster = Roll(population, seed)
        # When, whose, number, and what: an event, or the client of a flight. What is at one moment comes as in the
        # simulator: timers of the server, then by client, then by number.
        self._queue: list[tuple[float, NodeId, int, Event | Client]] = [(0.0, SERVER, -1, Started(0.0))]
        self._flights: dict[Client, _Flight] = {}  # the only task that each is at
        self._whose, self._stale = array("q"), array("q")  # of replies that were committed, counted in the end
        self._client = SERVER  # whom the event is about that the scheduler is at
        self._by = array("q")  # whom the event was about that each commit followed
        self._number = 0
        self._is_stopped = False

    def run(self, until: float, max_events: float) -> Rehearsed:
        found, queue, scheduler, roster = self.found, self._queue, self._scheduler, self._roster
        state, now, since = scheduler.init(roster), -1.0, 0
        while queue and not self._is_stopped:
            time, whose, number, what = heappop(queue)
            if time > until or found.events >= max_events:
                found.reason = "time is up" if time > until else "enough events"
                break
            event = what if isinstance(what, tuple) else self._heard(what, number, time)
            if event is None:
                continue
            self._client = whose
            if time > now:
                now, since = time, 0
            since += 1
            if since > _AT_ONE_INSTANT:
                raise CompositionError(
                    f"{scheduler!r}: must let time pass, got a million events at second {now:g}. "
                    "Give the clients a pace, or the scheduler an end."
                )
            found.events += 1
            state, actions = scheduler.step(state, event, roster)
            for action in actions if len(actions) < _MANY else self._without_tasks(actions, now):
                if type(action) is Dispatch:
                    self._dispatch(action, now)
                else:
                    self._act(action, now)
                if self._is_stopped:
                    break
        found.seconds = max(now, 0.0)
        found.committed, found.staleness = _counted(self._whose), _counted(self._stale)
        return found

    def _heard(self, client: Client, number: int, now: float) -> Arrived | Lost | None:
        """What the scheduler hears of a task; nothing, if it was given up."""
        flight = self._flights.pop(client, None)
        if flight is None:
            return None
        entry, id, stage, began, fetched, version, cost, group = flight
        if entry != number:  # it is at another task by now
            self._flights[client] = flight
            return None
        if stage:
            self.found.lost[stage] += 1
            return Lost(now, client, id, began)
        commits, by = self.found.commits, self._by
        if len(commits) > version:  # those that were made before it fetched
            version = bisect_left(commits, fetched, version)
            while version < len(commits) and commits[version] == fetched and by[version] < client:
                version += 1
        # Made as tuples, without a NamedTuple's own way, which takes as long again.
        reply = _new(ReplyInfo, (id, client, version, cost[0], cost[1], 0.0, group, _NO_REPORT, 0, 0.0, 0.0, 1.0))
        return _new(Arrived, (now, reply, began))

    def _without_tasks(self, actions: Sequence[Action], now: float) -> Iterator[Action]:
        """The actions one after another, but for many tasks in a row, which are dispatched together."""
        for kind, group in groupby(actions, type):
            row = list(group)
            if kind is Dispatch and len(row) >= _MANY:
                self._dispatch_all(row, now)
            else:
                yield from row

    def _dispatch_all(self, tasks: Sequence[Any], now: float) -> None:
        costs = list(map(self._costs, tasks))
        for task, cost, course in zip(tasks, costs, self._courses(tasks, costs, now), strict=True):
            self._dispatch(task, now, cost, course)

    def _dispatch(self, task: Dispatch, now: float, cost: Cost | None = None, course: _Course | None = None) -> None:
        """Decide at once what becomes of a task, and when the scheduler hears of it."""
        client, _, group, is_followed = task
        found, id = self.found, self.found.dispatched
        if is_followed:
            raise CompositionError(
                f"{self._scheduler!r}: asks clients for the next task while they are at one, which is not rehearsed, "
                f"got client {client}. Run it; its times do not depend on what is trained."
            )
        if client in self._flights:
            raise CompositionError(
                f"{self._scheduler!r}: must ask clients that are free, got client {client}, which is at a task. "
                "Wait for it, or give it up."
            )
        cost = cost or self._costs(task)
        stage, when, fetched = course or self._course(client, id, cost, now)
        found.dispatched = id + 1
        self._number = number = self._number + 1
        self._flights[client] = number, id, stage, now, fetched, len(found.commits), cost, group
        if when != math.inf:
            heappush(self._queue, (when, client, number, client))

    def _courses(self, tasks: Sequence[Dispatch], costs: Sequence[Cost], now: float) -> list[_Course]:
        """`_course` of many tasks: the same sums over arrays, where nothing comes between."""
        population, found = self._population, self.found
        clients = [task.client for task in tasks]
        numbers = np.fromiter(chain.from_iterable(costs), np.float64, 7 * len(costs)).reshape(-1, 7)
        steps, _, task, fetch, held, reply, _ = numbers.T
        pace, uplink, downlink = population.speeds(clients, now).T
        asked = now + task / downlink
        until = population.stays(clients, asked)
        fetched = asked + fetch / uplink
        began = fetched + held / downlink
        seconds = steps * pace
        is_through = (until > asked) & (began < until) & (until - began >= seconds)
        fates = map(population.fate, clients, count(found.dispatched))
        is_through &= [not (fate.stage or fate.late_seconds) for fate in fates]
        found.downlink += int((task + held)[is_through].sum())
        found.uplink += int((fetch + reply)[is_through].sum())
        when = began + seconds + reply / uplink
        courses = list(zip(repeat(""), when.tolist(), fetched.tolist()))
        for i in (~is_through).nonzero()[0].tolist():
            courses[i] = self._course(clients[i], found.dispatched + i, costs[i], now)
        return courses

    def _course(self, client: Client, id: int, cost: Cost, now: float) -> _Course:
        """What becomes of a task."""
        population, found = self._population, self.found
        steps, _, task, fetch, held, reply, trouble = cost
        pace, uplink, downlink, _, _, _ = population.profile(client, now)
        stage, share, notice, late = population.fate(client, id)
        asked = now + task / downlink
        until = population.available_until(client, asked)
        fetched = asked + fetch / uplink
        began = fetched + held / downlink
        seconds = steps * pace
        if until - began > seconds and not stage:  # most
            found.downlink += task + held
            found.uplink += fetch + reply
            return "", began + seconds + late + reply / uplink, fetched
        found.downlink += task
        told = notice + trouble / uplink
        if stage == "download" or until <= asked:
            return "download", asked + told, asked
        found.downlink += held
        found.uplink += fetch
        if began >= until:
            until = population.available_until(client, began)
        if stage == "train" or until - began < seconds:
            spent = min(until - began, seconds * share if stage == "train" else seconds)
            return "train", began + spent + told, fetched
        if stage == "upload":
            return "upload", began + seconds + told, fetched
        found.uplink += reply
        return "", began + seconds + late + reply / uplink, fetched

    def _act(self, action: Action, now: float) -> None:
        found = self.found
        if isinstance(action, Accept):
            return  # the most frequent: here nothing is kept for a commit
        if isinstance(action, Commit):
            version = len(found.commits)
            found.commits.append(now)
            self._by.append(self._client)
            self._whose.extend([reply.client for reply in action.replies])
            self._stale.extend([version - reply.version for reply in action.replies])
        elif isinstance(action, GiveUp):
            for client in action.clients:
                if self._flights.pop(client, None) is not None:
                    found.lost["deadline"] += 1
        elif isinstance(action, After):
            self._number += 1
            if action.seconds != math.inf:
                when = now + action.seconds
                heappush(self._queue, (when, SERVER, self._number, Deadline(when, action.tag)))
        elif isinstance(action, Stop):
            self._is_stopped, found.reason = True, action.reason


def _counted(numbers: array[int]) -> Counter[int]:
    values, counts = np.unique(np.asarray(numbers), return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def costs_of(star: Star) -> Costs:
    """What tasks cost the clients of a star: each client is played through once, without training.

    Messages of later tasks may differ by a few bytes, and by more where what is sent depends on what was trained or on
    what a client kept: of `Downlink`, every task is told as the first, which fetches all of the shadow; of `Mirrored`,
    `Ferret` and `OneByte`, as one that has missed nothing. What a client does depends on the version with `MCPSGD`, of
    which every task is told as one that trains, as in every other version, so that a run takes less; and with `FedAMD`,
    of which it is told as of version 0.

    Raises:
        CompositionError: updates do not come with the replies, but in an exchange of the channel.
    """
    if star.channel.exchanges:
        raise CompositionError(
            f"{star.channel!r}: exchanges messages after the replies, which take their time and are not rehearsed. "
            "Run it; or rehearse with the Plain channel, which tells what it would take without them."
        )
    calm = replace(star, population=_Calm(star.population))
    params = star.algorithm.init(calm.initial(), star.census)
    known = dict[int, Cost]()

    def costs(action: Dispatch) -> Cost:
        if action.client not in known:
            known[action.client] = _played(calm, params, action.client)
        cost = known[action.client]
        return cost._replace(steps=action.steps) if action.steps else cost

    return costs


class _Calm(Population):
    """The same clients, always there."""

    def __init__(self, population: Population) -> None:
        self._population = population

    @property
    def clients(self) -> Sequence[Client]:
        return self._population.clients

    def data(self, client: Client) -> Dataset:
        return self._population.data(client)

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        return self._population.profile(client, now)


def _played(star: Star, params: ServerState, client: Client) -> Cost:
    """The messages of one task, and its steps.

    Raises:
        CompositionError: the client cannot do it.
    """
    program, task = ClientProgram(star), Task(0, 0, 0, 0)
    state = program.init(client)
    state, (asks,) = program.step(state, Message(0.0, client, SERVER, task))
    fetch = _body(asks, Fetch, client)
    held = Held(0, star.given(params, fetch.of(params), 0))
    state, (work,) = program.step(state, Message(0.0, client, SERVER, held))
    steps = 0
    if isinstance(work, Work):
        steps, job = work.steps, work.job
        nothing = {name: torch.zeros_like(t) for name, t in job.start.items()}
        state, (work,) = program.step(state, Message(0.0, client, client, Trained(nothing, steps, 1.0, job.seed)))
    reply = _body(work, Reply, client)
    trouble = Trouble(0, "download", "the client went away")
    return Cost(
        steps, len(star.site(client).data), *(encoded_size(message) for message in (task, fetch, held, reply, trouble))
    )


def _body(effect: Effect, kind: type, client: Client) -> Any:
    body = effect.body if isinstance(effect, Send) else effect
    if not isinstance(body, kind):
        raise CompositionError(f"client {client}: must do its task, got {body}. Look at its data.")
    return body

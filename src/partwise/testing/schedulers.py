"""The contract of schedulers: reducers over events."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from partwise.core.codec import register
from partwise.core.schedule import (
    Accept,
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    ReplyInfo,
    Scheduler,
    Skipped,
    Started,
    Stop,
)
from partwise.testing.rules import check_part, check_same, expect, other_chance, saved, snapshot, trying

__all__ = ["check_scheduler"]

_EVENTS = 400  # a scheduler that runs for ever is watched for so long
_HOPELESS_EVENTS = 20_000  # where nothing can be committed, it must stop before
_HOPELESS_SECONDS = 366 * 86_400.0


class _Course(NamedTuple):
    """What becomes of a task: answered or lost so many seconds after it was given; inf: neither."""

    seconds: float
    is_lost: bool = False


@dataclass(frozen=True)
class _World:
    """Clients to try a scheduler on. course: task, client -> what becomes of it. skips: every third commit."""

    name: str
    course: Callable[[int, int], _Course]
    next_available: Callable[[int, float], float] = lambda _client, now: now
    is_hopeless: bool = False
    skips: bool = False


def _varied(id: int, client: int) -> _Course:
    return _Course(1.0 + (client * 7) % 5, is_lost=id % 6 == 5)


def _unsure(id: int, client: int) -> _Course:
    """A fifth of the clients never answer, a seventh of the others' tasks take more than two days."""
    return _Course(math.inf if client % 5 == 4 else 200_000.0 if id % 7 == 3 else 1.0 + client % 4)


def _comes_and_goes(client: int, now: float) -> float:
    """A sixth of the clients is never there, a third every other half of a hundred seconds."""
    since = (now + 17 * client) % 100
    return math.inf if client % 6 == 0 else now + 100 - since if client % 6 < 3 and since >= 50 else now


_VARIED = _World("clients differ in pace and some are lost", _varied)
_INSTANT = _World("clients take no time", lambda _id, _client: _Course(0.0))
_PICKY = _World("a third of the commits come to nothing", _varied, skips=True)
_UNSURE = _World("clients come and go, are late or silent", _unsure, _comes_and_goes)
_HOPELESS = (
    _World("no client ever answers", lambda _id, _client: _Course(math.inf), is_hopeless=True),
    _World("every client is lost at once", lambda _id, _client: _Course(0.0, is_lost=True), is_hopeless=True),
    _World("no client is ever available", _varied, lambda _client, _now: math.inf, is_hopeless=True),
)


def check_scheduler(part: Scheduler, *, num_clients: int = 30) -> None:
    """Check that a scheduler keeps the rules of its family.

    It is tried on clients that differ in pace and are sometimes lost, also where a third of the commits come to
    nothing; on clients that take no time, that come and go, are late or silent; and on clients of which none answers,
    all are lost at once, none is ever available: there it must stop by itself, within a year of its clock.

    Args:
        part: the scheduler.
        num_clients: size of the population it is tried on.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.schedulers import Synchronous
        >>> check_scheduler(Synchronous(cohort=5, rounds=3))
    """
    check_part(part)
    for kind in (ReplyInfo, *part.state_types):
        register(kind)
    before = repr(part), sorted(vars(part))
    for world in (_VARIED, _INSTANT, _PICKY, _UNSURE):
        with other_chance(1):
            one = _Run(part, num_clients, world).play()
        with other_chance(2):
            other = _Run(part, num_clients, world).play(is_saved=True)
        rule = "must depend on its state and the event alone, and go on from a saved state"
        remedy = "Derive chance from the roster's seed, and keep all state in what is returned"
        check_same(part, one.story, other.story, rule, remedy)
        is_enough = one.num_commits > 0 or world is _UNSURE
        expect(is_enough, part, "must commit something", got="no commit", remedy="Answer replies with Commit")
    for world in _HOPELESS:
        _Run(part, num_clients, world).play()
    after = repr(part), sorted(vars(part))
    expect(
        after == before,
        part,
        "must keep its state outside itself",
        got="a part that changed",
        remedy="Return the state",
    )


@dataclass(frozen=True)
class _Roster:
    clients: range
    world: _World
    seed: int = 4

    def examples(self, client: int) -> int:
        return 5 + client % 4

    def next_available(self, client: int, now: float) -> float:
        return self.world.next_available(client, now)


class _Flight(NamedTuple):
    """A task under way."""

    client: int
    began: float
    info: ReplyInfo
    is_followed: bool


@dataclass
class _Run:
    """A clock, clients, and the rules that hold at every step.

    Args:
        flights: task -> what is known of it, until it is answered, lost or given up.
        arrived: replies that were neither committed nor discarded.
        asked: tasks since the last commit, until something is accepted.
    """

    part: Scheduler
    num_clients: int
    world: _World
    num_dispatches: int = 0
    num_commits: int = 0
    num_skipped: int = 0
    num_timers: int = 0
    reason: str | None = None
    story: list[Any] = field(default_factory=list)
    queue: list[tuple[float, int, Event]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)
    flights: dict[int, _Flight] = field(default_factory=dict)
    arrived: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)

    def play(self, *, is_saved: bool = False) -> _Run:
        part, roster = self.part, _Roster(range(self.num_clients), self.world)
        state = part.init(roster)
        self._push(0.0, Started(0.0))
        most = _HOPELESS_EVENTS if self.world.is_hopeless else _EVENTS
        instant, at_once = (-1.0, 0), 0
        for _ in range(most):
            event = self._next()
            here = (event.now, self.num_commits)
            instant, at_once = here, at_once + 1 if here == instant else 0
            self._moves_on(event.now, at_once)
            state = saved(part, state) if is_saved else state
            with trying(part, f"must take {event!r}"):
                state, actions = part.step(state, event, roster)
            with trying(part, "acts by a list of actions, which hold replies of Arrived events"):
                for action in actions:
                    self._act(event.now, action)
                    if self.reason is not None:
                        break
            if self.reason is not None:
                break
        self._stops(most)
        snapshot(part, state, "the state")
        return self

    # Time

    def _push(self, when: float, event: Event) -> None:
        heapq.heappush(self.queue, (when, next(self.numbers), event))

    def _next(self) -> Event:
        """What happens next; nothing of those who were given up."""
        while self.queue:
            _, _, event = heapq.heappop(self.queue)
            if isinstance(event, Deadline):
                self.num_timers -= 1
            if not isinstance(event, Arrived | Lost):
                return event
            id = event.id if isinstance(event, Lost) else event.reply.id
            if self.flights.pop(id, None) is not None:
                if isinstance(event, Arrived):
                    self.arrived.add(id)
                return event
        rule = f"must wait for something until it stops, also where {self.world.name}"
        expect(False, self.part, rule, got="nothing", remedy="Dispatch, give every wait a deadline by After, or Stop")
        raise AssertionError

    def _moves_on(self, now: float, at_once: int) -> None:
        rule = f"must not act without end at one instant, also where {self.world.name}"
        remedy = "Count what came to nothing, and Stop with a sentence after so many"
        got = f"{at_once} events at {now} seconds without a commit"
        expect(at_once <= 100 * self.num_clients, self.part, rule, got=got, remedy=remedy)
        is_in_time = not self.world.is_hopeless or now <= _HOPELESS_SECONDS
        self._rule_of_end(is_in_time, f"a run that goes on after {now / 86_400:.0f} days")

    def _stops(self, events: int) -> None:
        if self.world.is_hopeless:
            self._rule_of_end(self.reason is not None, f"a run that goes on after {events} events")
            self._rule_of_end(" " in (self.reason or ""), f"Stop({self.reason!r})")

    def _rule_of_end(self, holds: bool, got: str) -> None:
        rule = f"must stop, and say why, where {self.world.name}"
        expect(holds, self.part, rule, got=got, remedy="Bound every wait, and Stop with a sentence")

    # What the scheduler wants

    def _act(self, now: float, action: Any) -> None:
        match action:
            case Accept(replies) | Discard(replies) | Commit(replies):
                self.story.append([type(action).__name__, *(r.id for r in replies), *action[1:]])
            case _ if isinstance(action, tuple):
                self.story.append([type(action).__name__, *action])
        match action:
            case Dispatch():
                self._dispatch(now, action)
            case Accept(replies):
                self.accepted |= {reply.id for reply in replies}
                self._known(self.accepted <= self.arrived, sorted(self.accepted))
            case Commit(replies, scales):
                self._commit(now, replies, scales)
            case Discard(replies):
                ids = [reply.id for reply in replies]
                self._known(set(ids) <= self.arrived - self.accepted and len(ids) == len(set(ids)), ids)
                self.arrived -= set(ids)
            case GiveUp(clients):
                self._give_up(clients)
            case After(seconds, tag):
                self._after(now, seconds, tag)
            case Stop(reason, version):
                self.reason = reason if self.num_commits >= version else None
            case _:
                rule = "acts by Dispatch, Accept, Commit, Discard, GiveUp, After and Stop"
                expect(False, self.part, rule, got=action, remedy="Return those")

    def _known(self, holds: bool, ids: list[int]) -> None:
        rule = "must commit or discard each reply once, after it arrived"
        expect(holds, self.part, rule, got=ids, remedy="Commit the replies of Arrived events, and forget them then")

    def _commit(self, now: float, replies: Sequence[ReplyInfo], scales: Sequence[float]) -> None:
        ids = [reply.id for reply in replies]
        self._known(set(ids) <= self.arrived and len(ids) == len(set(ids)), ids)
        rule, remedy = "must commit next what it has accepted", "Accept a reply only when nothing can keep it from that"
        expect(self.accepted <= set(ids), self.part, rule, got=ids, remedy=remedy)
        rule, remedy = "must have asked all of a commit before it accepts any, and after the last one", "Accept nothing"
        expect(not self.accepted or set(ids) <= self.asked, self.part, rule, got=ids, remedy=remedy)
        rule, remedy = "must not scale where it says that it never does", "Leave may_scale True"
        expect(self.part.may_scale or not scales, self.part, rule, got=list(scales), remedy=remedy)
        rule, remedy = "must give each reply of a commit a scale, or none", "Give as many scales as replies"
        expect(len(scales) in (0, len(ids)), self.part, rule, got=f"{len(scales)} for {len(ids)}", remedy=remedy)
        rule, remedy = "must scale by finite numbers from 0 on", "Bound the staleness weight"
        are_numbers = all(math.isfinite(scale) and scale >= 0 for scale in scales)
        expect(are_numbers, self.part, rule, got=list(scales), remedy=remedy)
        rule, remedy = "must not scale what it has accepted, which is added up already", "Leave Accept out"
        expect(not (self.accepted and scales), self.part, rule, got=list(scales), remedy=remedy)
        is_fresh = not self.part.is_fresh or all(reply.version == self.num_commits for reply in replies)
        rule, remedy = "must commit nothing that was begun before the last commit, as it says", "Leave is_fresh False"
        expect(is_fresh, self.part, rule, got=ids, remedy=remedy)
        self.arrived -= set(ids)
        self.accepted.clear()
        self.asked.clear()
        if self.world.skips and (self.num_commits + self.num_skipped) % 3 == 1:
            self.num_skipped += 1
            heapq.heappush(self.queue, (now, -1, Skipped(now)))  # before all else
            return
        self.num_commits += 1
        most = self.part.versions or math.inf
        rule, remedy = f"must commit at most as often as `versions` says, {most}", "Stop then, or let it be 0"
        expect(self.num_commits <= most, self.part, rule, got=self.num_commits, remedy=remedy)

    def _give_up(self, clients: Sequence[int]) -> None:
        waited = {flight.client for flight in self.flights.values()}
        is_waited = set(clients) <= waited and len(clients) == len(set(clients))
        rule, remedy = "must give up only clients that it waits for, once each", "Forget who has answered or is lost"
        expect(is_waited, self.part, rule, got=list(clients), remedy=remedy)
        self.flights = {id: flight for id, flight in self.flights.items() if flight.client not in clients}

    def _after(self, now: float, seconds: float, tag: int) -> None:
        is_time = math.isfinite(seconds) and seconds >= 0 and isinstance(tag, int)
        rule, remedy = "must wait for a finite time from 0 on, with a whole number as tag", "Leave After out to wait"
        expect(is_time, self.part, rule, got=After(seconds, tag), remedy=remedy)
        self._push(now + seconds, Deadline(now + seconds, tag))
        self.num_timers += 1
        rule, remedy = "must not leave ever more deadlines behind", "Keep one After, and set it again for what remains"
        is_few = self.num_timers <= 2 * self.num_clients
        expect(is_few, self.part, rule, got=f"{self.num_timers} that have not run out", remedy=remedy)

    def _dispatch(self, now: float, wanted: Dispatch) -> None:
        client, steps, group, is_followed = wanted
        is_known = client in range(self.num_clients)
        expect(is_known, self.part, "must ask clients of the roster", got=client, remedy="Draw from roster.clients")
        is_whole = isinstance(steps, int) and isinstance(group, int) and steps >= 0
        rule, remedy = "must ask for a whole number of steps from 0 on, in a group with a whole number", "Round it"
        expect(is_whole, self.part, rule, got=wanted, remedy=remedy)
        at_work = [flight for flight in self.flights.values() if flight.client == client]
        is_free = not at_work or (len(at_work) == 1 and at_work[0].is_followed)
        rule = "must not ask a client again that is still at work, but once after a task that says so"
        remedy = "Wait for it, GiveUp before, or say is_followed of the task before"
        expect(is_free, self.part, rule, got=client, remedy=remedy)
        id, self.num_dispatches = self.num_dispatches, self.num_dispatches + 1
        report = {"utility": 1.0 + client % 3}
        info = ReplyInfo(id, client, self.num_commits, steps or 3, 10 + client, 2.0 + id % 3, group, report)
        self.flights[id] = _Flight(client, now, info, is_followed)
        if not self.accepted:
            self.asked.add(id)
        seconds, is_lost = self.world.course(id, client)
        if self.world.next_available(client, now) > now:
            seconds, is_lost = 0.0, True  # as a client that is away before the download
        if is_lost:
            self._push(now + seconds, Lost(now + seconds, client, id, now))
        elif seconds < math.inf:
            self._push(now + seconds, Arrived(now + seconds, info, now))

"""FedCompass: as many local steps for each client as let a group of them answer together. Standard library only.

Notation: client i of N has the pace e_i, seconds per local step, and takes Q steps for its task; a group of clients is
expected at T_a and waited for until T_max.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from partwise.core.schedule import (
    Action,
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Event,
    ReplyInfo,
    Roster,
    Sampling,
    Scheduler,
    Started,
    Stop,
)
from partwise.schedulers.flights import (
    A_DAY,
    NOBODY,
    Flights,
    answered_,
    ask_,
    check_at_least,
    check_end,
    ending,
    is_alone,
    is_deserted,
    news_,
    resting_,
    set_alarm_,
    sleep_,
    uncounted_,
)
from partwise.schedulers.staleness import Polynomial, Staleness

__all__ = ["Compass", "CompassGroup", "FedCompass"]

_GUARD = 1e-9  # before a number of steps is rounded down: equal paces give equal numbers
_NO_TIME = 1e-12  # the pace of who takes none
_SLACK = 1e-9  # who answers at T_max is in time, whatever comes first of two things at one time


@dataclass
class CompassGroup:
    """Clients that are to answer together.

    Args:
        expected: T_a.
        latest: T_max; both are 0 once the group was committed, so that nobody joins it.
        waiting: clients that have not answered.
        got: the replies of those who have.
        is_over: whether its time is over.
    """

    expected: float
    latest: float
    waiting: dict[int, None] = field(default_factory=dict)
    got: list[ReplyInfo] = field(default_factory=list)
    is_over: bool = False


@dataclass
class Compass:
    """State of `FedCompass`, changed in place.

    Args:
        flights: who is at work.
        version: commits so far.
        pace: client -> e_i, as measured.
        group_of: client at work -> its group; those that never answered have none.
        groups: in the order in which they were made.
        late: replies that came too late for their group and wait for the next commit of any.
        made: how many groups there were; they are numbered from 1.
    """

    flights: Flights = field(default_factory=Flights)
    version: int = 0
    pace: dict[int, float] = field(default_factory=dict)
    group_of: dict[int, int] = field(default_factory=dict)
    groups: dict[int, CompassGroup] = field(default_factory=dict)
    late: list[ReplyInfo] = field(default_factory=list)
    made: int = 0


@dataclass(frozen=True)
class FedCompass(Scheduler):
    """All clients are at work, in groups; each gets the steps that let it answer together with its group.

    A client joins the group that allows it the most steps, or opens one. When all of a group have answered, or at
    T_max, w <- w + sum of alpha s(u) a_i v_i over the group and over those who came late, and they are placed anew,
    fastest first.

    a_i is 1/N with `FedAvg(weights="uniform")` and n_i / n with `FedAvg(weights="unbiased")`: their means divide by
    the K of a commit, or by K/N times all examples, so that the scale that is sent with an update is alpha s(u) K/N.
    `Mean("holders")` is better for submodels: it divides per coordinate by the weights of those who hold it. Server
    momentum (FedCompass+M) is a server chain, `ServerSGD`.

    Args:
        min_steps: fewest local steps of a task, >= 1.
        max_steps: most local steps, >= min_steps; also those of a client's first task.
        latest_time_factor: lambda: a group is waited for so many times as long as it is expected to take, >= 1; inf:
            until all of it have answered or are lost.
        pace_momentum: beta, the weight of the newest measurement of a pace, in (0, 1].
        alpha: weight of a commit, > 0.
        staleness: s.
        normalize: each update is divided by its steps and multiplied by the commit's mean steps (FedCompass+N).
        versions: commits, after which it stops; 0 for no limit.
        seconds: when it stops at the latest.
        patience_seconds: a client that has not answered after so long is given up and asked again. Default: a day.

    Source: Li et al., "FedCompass: efficient cross-silo federated learning on heterogeneous client devices using a
        computing power-aware scheduler", ICLR 2024, arXiv:2309.14675; defaults and rules of the released code (APPFL).
    Differs: the formula of `normalize` is ours. Time is measured from the asking to the answer, links included. Who is
        lost leaves its group and is placed anew. As many late replies as there are clients are a commit of their own.
        A group is waited for until a part in 10^9 after T_max, so that replies that come at that moment are in it.
    """

    min_steps: int = 20
    max_steps: int = 100
    latest_time_factor: float = 1.5
    pace_momentum: float = 0.9
    alpha: float = 0.9
    staleness: Staleness = field(default_factory=Polynomial)
    normalize: bool = False
    versions: int = 100
    seconds: float = math.inf
    patience_seconds: float = A_DAY
    state_types: ClassVar[tuple[type, ...]] = (Compass, CompassGroup, Flights)

    @property
    def groups(self) -> None:
        return None

    @property
    def may_scale(self) -> bool:
        return True

    @property
    def sampling(self) -> Sampling | None:
        return Sampling("public", 0.0)

    def __post_init__(self) -> None:
        check_at_least(self, min_steps=1, latest_time_factor=1)
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"FedCompass(min_steps={self.min_steps}, max_steps={self.max_steps}): min_steps must be at most "
                f"max_steps, got {self.min_steps} and {self.max_steps}. A fifth of it is usual."
            )
        if not 0 < self.pace_momentum <= 1:
            raise ValueError(
                f"FedCompass(pace_momentum={self.pace_momentum}): must lie in (0, 1], got {self.pace_momentum}. "
                "1 forgets older measurements."
            )
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"FedCompass(alpha={self.alpha}): must be above 0, got {self.alpha}. 0.9 is usual.")
        check_end(self, self.versions)

    def init(self, roster: Roster) -> Compass:
        return Compass()

    def step(self, state: Compass, event: Event, roster: Roster) -> tuple[Compass, list[Action]]:
        if uncounted_(state, event):
            return state, []
        actions: list[Action] = []
        if isinstance(event, Arrived):
            if not answered_(state.flights, event):
                return state, [Discard((event.reply,))]
            actions = self._arrived_(state, event, roster)
        elif isinstance(event, Started):
            for client in roster.clients:
                actions += self._sent_(state, client, event.now, roster)
        elif isinstance(event, Deadline) and event.tag > 0:
            if event.tag in state.groups:
                state.groups[event.tag].is_over = True
                actions = self._closed_(state, event.tag, event.now, roster) if state.groups[event.tag].got else []
        else:
            actions, end = self._moved_(state, event, roster)
            if end:
                return state, [*actions, Stop(end)]
        actions = ending(actions, self.versions, state.version)
        if is_deserted(state.flights):
            return state, [*actions, Stop(NOBODY)]
        return state, actions + set_alarm_(state.flights, event.now, self)

    def _moved_(self, state: Compass, event: Event, roster: Roster) -> tuple[list[Action], str]:
        """Take losses and the alarm in; also why the run is over."""
        lost, woken, actions, end = news_(state.flights, event, self)
        for client in () if end else lost:
            actions += self._left_(state, client, event.now, roster)
        resting = resting_(state.flights, event.now)
        for client in () if end else lost + woken:
            if client in resting and not is_alone(state.flights):
                sleep_(state.flights, resting[client], client)
            else:
                resting.pop(client, None)
                actions += self._sent_(state, client, event.now, roster)
        return actions, end

    def _arrived_(self, state: Compass, event: Arrived, roster: Roster) -> list[Action]:
        now, reply, began = event
        client, number = reply.client, state.group_of.pop(reply.client, 0)
        self._measure_(state, client, max(now - began, 0.0) / max(1, reply.steps))
        if not number:
            return [self._commit_(state, [reply], roster), *self._sent_(state, client, now, roster)]
        group = state.groups[number]
        del group.waiting[client]
        if now > _end(group):
            state.late.append(reply)
            if not group.waiting and not group.got:  # of those who were in time its timer takes care, which is late too
                del state.groups[number]
            return [*self._overflow_(state, roster), *self._sent_(state, client, now, roster)]
        group.got.append(reply)
        if not group.waiting:
            return self._closed_(state, number, now, roster)
        return [After(0.0, number)] if group.is_over else []  # its timer was there first at the very same time

    def _overflow_(self, state: Compass, roster: Roster) -> list[Action]:
        """Where everybody is late, no group ever commits: what is late goes by itself then."""
        if len(state.late) < len(roster.clients):
            return []
        late, state.late = state.late, []
        return [self._commit_(state, late, roster)]

    def _measure_(self, state: Compass, client: int, pace: float) -> None:
        old = state.pace.get(client, pace)
        state.pace[client] = max(_NO_TIME, (1 - self.pace_momentum) * old + self.pace_momentum * pace)

    def _left_(self, state: Compass, client: int, now: float, roster: Roster) -> list[Action]:
        """A client will not answer: nobody of its group waits for it any longer."""
        number = state.group_of.pop(client, 0)
        if not number:
            return []
        group = state.groups[number]
        del group.waiting[client]
        if group.waiting:
            return []
        if group.got:
            return self._closed_(state, number, now, roster)
        del state.groups[number]
        return []

    def _closed_(self, state: Compass, number: int, now: float, roster: Roster) -> list[Action]:
        """Commit a group and who came late, and send its clients off again, the fastest first."""
        group = state.groups[number]
        got, late = group.got, state.late
        group.expected, group.latest, group.got, state.late = 0.0, 0.0, [], []
        actions: list[Action] = [self._commit_(state, late + got, roster)]
        for client in sorted((reply.client for reply in got), key=state.pace.__getitem__):
            actions += self._sent_(state, client, now, roster)
        if not group.waiting:
            del state.groups[number]
        return actions

    def _commit_(self, state: Compass, replies: list[ReplyInfo], roster: Roster) -> Commit:
        share = self.alpha * len(replies) / len(roster.clients)
        scales = [share * self.staleness(max(0, state.version - reply.version)) for reply in replies]
        if self.normalize:
            mean = sum(reply.steps for reply in replies) / len(replies)
            scales = [s * mean / max(1, reply.steps) for s, reply in zip(scales, replies, strict=True)]
        state.version += 1
        return Commit(tuple(replies), () if all(scale == 1 for scale in scales) else tuple(scales))

    def _sent_(self, state: Compass, client: int, now: float, roster: Roster) -> list[Action]:
        """Ask a client, or think of it when it will be there."""
        when = roster.next_available(client, now)
        if when > now:
            sleep_(state.flights, when, client)
            return []
        if client not in state.pace:
            return [ask_(state.flights, now, client, self.max_steps)]
        made = state.made
        number, steps = self._placed_(state, state.pace[client], now)
        group = state.groups[number]
        group.waiting[client], state.group_of[client] = None, number
        asked: Action = ask_(state.flights, now, client, steps, number)
        return [asked] if state.made == made else [asked, After(_end(group) - now, number)]

    def _placed_(self, state: Compass, pace: float, now: float) -> tuple[int, int]:
        """The group that a client goes to, which may be new, and the steps it takes there."""
        best, steps = 0, self.min_steps
        for number, group in state.groups.items():
            q = math.floor((group.expected - now) / pace + _GUARD)
            if steps <= q <= self.max_steps:
                best, steps = number, q
        if best:
            return best, steps
        found = [
            math.floor((group.latest + self._fastest(state, group) * self.max_steps - now) / pace + _GUARD)
            for group in state.groups.values()
            if now < group.latest < math.inf
        ]
        steps = max((q for q in found if q <= self.max_steps), default=self.max_steps)
        steps = max(steps, self.min_steps)
        state.made += 1
        seconds = steps * pace
        state.groups[state.made] = CompassGroup(now + seconds, now + self.latest_time_factor * seconds)
        return state.made, steps

    def _fastest(self, state: Compass, group: CompassGroup) -> float:
        members = [*group.waiting, *(reply.client for reply in group.got)]
        return min(state.pace[client] for client in members)


def _end(group: CompassGroup) -> float:
    """When a group is waited for no longer."""
    return group.latest * (1 + _SLACK)

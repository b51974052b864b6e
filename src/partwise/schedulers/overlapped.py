"""Rounds that overlap: all train on while what they trained before is under way. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from partwise.core.schedule import (
    Action,
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
    Roster,
    Sampling,
    Scheduler,
    Skipped,
    Started,
    Stop,
)
from partwise.schedulers.flights import A_DAY, check_at_least

__all__ = ["Laps", "Overlapped"]


class _Lap(NamedTuple):
    """A round: the clients not heard of, each with when it was asked; and the replies."""

    waiting: dict[int, float]
    got: list[ReplyInfo]


@dataclass
class Laps:
    """State of `Overlapped`, changed in place.

    Args:
        open: the rounds that were asked and not closed, the older first; two at most.
        asked: how many rounds were asked.
        since: when the last one was closed.
        alarm: when the only `After` runs out; inf if there is none.
        in_vain: rounds in a row, up to the last, that committed nothing.
    """

    open: list[_Lap] = field(default_factory=list)
    asked: int = 0
    since: float = 0.0
    alarm: float = math.inf
    in_vain: int = 0


@dataclass(frozen=True)
class Overlapped(Scheduler):
    """Rounds of all clients, each begun before the answers to the one before are in.

    Round t begins from the version that has the updates of the rounds up to t - 2; those of round t - 1 leave a client
    when it begins round t, and are committed while all train. So an update meets a model that has moved on by one
    round, one transfer is under way at a time, and a round takes as long as its training or as its transfers (the
    reply, then the next round's part), whichever is longer. The first two rounds begin from the same model; the last
    reply leaves as soon as it is there. `CO2(..., delay=0)` is made for it; other algorithms may be used too.

    For few clients that are there all the time, such as clusters: all are asked in every round.

    Args:
        rounds: R >= 1, with a commit each.
        steps: local steps; 0 leaves them to the algorithm.
        deadline_seconds: a round is closed at the latest so long after the one before was, > 0 and finite; who has
            not answered it is given up. Default: a day.
        min_replies: replies without which a round commits nothing, >= 1.
        patience: rounds in a row that may commit nothing, >= 1; then the run stops.

    Source: Sun et al., "CO2: efficient distributed training with full communication-computation overlap", ICLR 2024,
        arXiv:2401.16265, algorithm 1, whose workers reduce among themselves.
    """

    rounds: int = 100
    steps: int = 0
    deadline_seconds: float = A_DAY
    min_replies: int = 1
    patience: int = 10
    state_types: ClassVar[tuple[type, ...]] = (Laps, _Lap)

    @property
    def versions(self) -> int:
        return self.rounds

    @property
    def sampling(self) -> Sampling | None:
        return Sampling("public", 0.0, self.min_replies)

    @property
    def counts_once(self) -> bool:
        return True

    def __post_init__(self) -> None:
        check_at_least(self, rounds=1, steps=0, min_replies=1, patience=1)
        if not 0 < self.deadline_seconds < math.inf:
            raise ValueError(
                f"Overlapped(deadline_seconds={self.deadline_seconds}): must be above 0 and finite, got "
                f"{self.deadline_seconds}. Give the seconds a round may take."
            )

    def init(self, roster: Roster) -> Laps:
        if self.min_replies > len(roster.clients):
            raise ValueError(
                f"Overlapped(min_replies={self.min_replies}): must be at most the population, got a population of "
                f"{len(roster.clients)}. Lower it."
            )
        return Laps()

    def step(self, state: Laps, event: Event, roster: Roster) -> tuple[Laps, list[Action]]:
        match event:
            case Started(now):
                state.since = now
                actions = self._ask_(state, now, roster) + self._ask_(state, now, roster)
                return state, actions + self._alarm_(state, now)
            case Arrived(now, reply, began):
                lap = _lap_of(state, reply.client, began)
                if lap is None:
                    return state, [Discard((reply,))]
                del lap.waiting[reply.client]
                lap.got.append(reply)
            case Lost(now, client, _, began):
                lap = _lap_of(state, client, began)
                if lap is not None:
                    del lap.waiting[client]
            case Deadline(now, _):
                state.alarm = math.inf
                if now >= state.since + self.deadline_seconds:
                    return self._closed_(state, _given_up_(state), now, roster)
            case Skipped():
                return state, []
        return self._closed_(state, [], now, roster)

    def _ask_(self, state: Laps, now: float, roster: Roster) -> list[Action]:
        """Everybody, for one round more, if there is one."""
        if state.asked == self.rounds:
            return []
        state.asked += 1
        state.open.append(_Lap(dict.fromkeys(roster.clients, now), []))
        is_followed = state.asked < self.rounds
        return [Dispatch(client, self.steps, is_followed=is_followed) for client in roster.clients]

    def _closed_(self, state: Laps, actions: list[Action], now: float, roster: Roster) -> tuple[Laps, list[Action]]:
        """Close what has nobody left to wait for, and ask for as much."""
        while state.open and not state.open[0].waiting:
            got = tuple(state.open.pop(0).got)
            is_enough = len(got) >= self.min_replies
            if got:
                actions.append(Commit(got) if is_enough else Discard(got))
            state.in_vain = 0 if is_enough else state.in_vain + 1
            if state.in_vain == min(self.patience, self.rounds):
                return state, [*actions, Stop(self._excuse(state))]
            state.since = now
            actions += self._ask_(state, now, roster)
        if not state.open:
            return state, [*actions, Stop()]
        return state, actions + self._alarm_(state, now)

    def _alarm_(self, state: Laps, now: float) -> list[Action]:
        """One `After` serves all rounds: it is set when there is none, and runs out before the next is to be closed."""
        if state.alarm < math.inf:
            return []
        state.alarm = state.since + self.deadline_seconds
        return [After(state.alarm - now, 0)]

    def _excuse(self, state: Laps) -> str:
        rounds = "the only round" if state.in_vain == 1 else f"{state.in_vain} rounds in a row"
        return (
            f"{rounds} committed nothing: each had fewer than min_replies={self.min_replies} answers within "
            f"{self.deadline_seconds:g} seconds; raise deadline_seconds or look at why clients are lost"
        )


def _lap_of(state: Laps, client: int, began: float) -> _Lap | None:
    """The round of a task: the last that was asked before it began; of two that were asked at once, the older.

    Where a channel exchanges messages, a task that is asked for meanwhile begins when they are through, not at once.
    """
    asked = [lap for lap in state.open if lap.waiting.get(client, math.inf) <= began]
    return max(asked, key=lambda lap: lap.waiting[client], default=None)


def _given_up_(state: Laps) -> list[Action]:
    """Wait no longer for those who keep the oldest round open, nor for what else they were asked."""
    late = tuple(state.open[0].waiting)
    for lap in state.open:
        for client in late:
            lap.waiting.pop(client, None)
    return [GiveUp(late)] if late else []

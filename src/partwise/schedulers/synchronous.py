"""Rounds: ask a cohort, wait, commit, ask the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from partwise.core.schedule import (
    Accept,
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
    Started,
    Stop,
)
from partwise.schedulers.choice import Choice, picked, soonest
from partwise.schedulers.choices import Uniform
from partwise.schedulers.flights import check_at_least

__all__ = ["Rounds", "Synchronous"]

_ROUND, _CLIENTS = 1, 2  # what an `After` is for: the end of a round, or clients that become available
_DAY = 86_400.0


class Rounds(NamedTuple):
    """State of `Synchronous`.

    Args:
        chosen: the choice's state.
        waiting: clients of the open round that have neither answered nor been lost, ascending; changed in place.
        got: replies of this round; changed in place.
        round: the open round, or the last, from 1; 0 before the first.
        turn: how many times it has picked clients.
        opened: when it began, as far as is known; what was asked before belongs to another.
        alarm: when the `After` for the end of a round runs out, the only one there is; inf if there is none.
        since: since when it has been waiting for clients to become available; inf if it is not.
        in_vain: rounds in a row, up to the last, that committed nobody's reply.
    """

    chosen: Any
    waiting: dict[int, None]
    got: list[ReplyInfo]
    round: int = 0
    turn: int = 0
    opened: float = 0.0
    alarm: float = math.inf
    since: float = math.inf
    in_vain: int = 0


@dataclass(frozen=True)
class Synchronous(Scheduler):
    """Each round a cohort; the replies that are waited for are committed together.

    A round ends when `cohort` replies are in, when nobody is left to wait for, or at its deadline. Who is still at work
    is then given up. Where fewer clients are available than are wanted, it asks those, if they are at least
    `min_replies`; otherwise it waits until somebody becomes available.

    Args:
        cohort: replies that a round waits for, K >= 1.
        rounds: how many rounds, >= 1.
        steps: local steps; 0 leaves them to the algorithm.
        deadline_seconds: a round is closed at the latest so long after it began, > 0. Default: a day. inf waits for
            every client, and for ever if one never answers.
        min_replies: replies without which a round commits nothing, >= 1. Not for a choice whose number is chance: then
            every round is committed, also one without replies.
        choice: whom it asks. Of one whose number is chance, such as `Poisson`, `cohort` is the expectation, and a round
            waits for all that were asked.
        extra: how many clients are asked beyond `cohort`: below 1 as a share of it, rounded up; otherwise their number.
            Where the population has no more, as many as there are.
        patience: rounds in a row that may commit nobody's reply, >= 1; then the run stops.
        wait_seconds: how long it waits for enough clients to become available, >= 0; then the run stops. Default: 30
            days.
    """

    cohort: int = 10
    rounds: int = 100
    steps: int = 0
    deadline_seconds: float = _DAY
    min_replies: int = 1
    choice: Choice = field(default_factory=Uniform)
    extra: float = 0.0
    patience: int = 10
    wait_seconds: float = 30 * _DAY
    state_types: ClassVar[tuple[type, ...]] = (Rounds,)

    @property
    def versions(self) -> int:
        return self.rounds

    @property
    def commits_together(self) -> bool:
        return not self.extra

    @property
    def is_fresh(self) -> bool:
        return True

    @property
    def sampling(self) -> Sampling | None:
        draws, enough = self.choice.draws, self._least
        if draws == "fixed" and self.extra:
            draws = "public"  # who is waited for depends on who answers first
        return None if draws is None else Sampling(draws, float(self.cohort), enough)

    @property
    def counts_once(self) -> bool:
        return True

    def __post_init__(self) -> None:
        check_at_least(self, cohort=1, rounds=1, steps=0, min_replies=1, extra=0, patience=1, wait_seconds=0)
        if not self.deadline_seconds > 0:
            raise ValueError(
                f"Synchronous(deadline_seconds={self.deadline_seconds}): must be above 0, got {self.deadline_seconds}. "
                "Give the seconds a round may take, or math.inf to wait for every client."
            )
        if self.min_replies > self.cohort:
            raise ValueError(
                f"Synchronous(min_replies={self.min_replies}): must be at most the cohort of {self.cohort}, "
                f"got {self.min_replies}. Lower it."
            )
        if self.extra and not self.choice.is_exact:
            raise ValueError(
                f"Synchronous(extra={self.extra}): must be 0 with {self.choice!r}, which picks a random number of "
                f"clients and waits for all, got {self.extra}. Leave it out."
            )
        if self.extra >= 1 and self.extra % 1 != 0:  # so it is for inf
            rule = f"must be a share below 1 or a whole number, got {self.extra}"
            raise ValueError(f"Synchronous(extra={self.extra}): {rule}. Round it.")

    def init(self, roster: Roster) -> Rounds:
        clients = roster.clients
        if self.cohort > len(clients):
            raise ValueError(
                f"Synchronous(cohort={self.cohort}): must be at most the population, "
                f"got a population of {len(clients)}. Lower the cohort or add clients."
            )
        return Rounds(self.choice.init(roster), {}, [])

    def step(self, state: Rounds, event: Event, roster: Roster) -> tuple[Rounds, list[Action]]:
        if isinstance(event, Arrived):  # most are, and a pattern is matched slowly
            return self._arrived(state, event, roster)
        match event:
            case Started(now):
                return self._open(state, now, roster)
            case Lost(now, client, _, began) if began >= state.opened and client in state.waiting:
                chosen = self.choice.lost(state.chosen, client)
                del state.waiting[client]
                return self._close_if_done(_begun(state, began)._replace(chosen=chosen), now, roster)
            case Deadline(now, tag) if tag == _ROUND:
                return self._rung(state._replace(alarm=math.inf), now, roster)
            case Deadline(now, tag) if tag == _CLIENTS:
                return self._open(state, now, roster)
            case _:
                return state, []

    def _arrived(self, state: Rounds, event: Arrived, roster: Roster) -> tuple[Rounds, list[Action]]:
        now, reply, began = event
        if began < state.opened or reply.client not in state.waiting:
            return state, [Discard([reply])]
        chosen, state = self.choice.heard(state.chosen, reply, now - began), _begun(state, began)
        del state.waiting[reply.client]
        state.got.append(reply)
        if chosen is not state.chosen:
            state = state._replace(chosen=chosen)
        many, least = len(state.got), self._least
        # What is sure to be committed: all replies, once there are enough of them.
        accepted: list[Action] = [Accept(tuple(state.got) if many == least else (reply,))] if many >= least else []
        state, actions = self._close_if_done(state, now, roster)
        return state, accepted + actions

    # A round begins

    @property
    def _least(self) -> int:
        """Replies without which a round commits nothing."""
        return self.min_replies if self.choice.is_exact else 0

    @property
    def _asked(self) -> int:
        """How many clients a round asks, if there are so many."""
        # A hair less, so that 0.1 of 30 is 3.
        return self.cohort + math.ceil(self.extra if self.extra >= 1 else self.extra * self.cohort - 1e-9)

    def _open(self, state: Rounds, now: float, roster: Roster) -> tuple[Rounds, list[Action]]:
        if state.in_vain == min(self.patience, self.rounds):
            return state, [Stop(self._excuse(state))]
        if state.round == self.rounds:
            return state, [Stop()]
        wanted = min(self._asked, len(roster.clients))
        asked, chosen = picked(self.choice, state.chosen, wanted, turn=state.turn, now=now, roster=roster)
        state = state._replace(chosen=chosen, turn=state.turn + 1)
        if len(asked) < self._least:
            return self._wait(state, now, len(asked), roster)
        actions: list[Action] = [Dispatch(client, self.steps) for client in asked]
        state = state._replace(round=state.round + 1, opened=now, since=math.inf)
        state = state._replace(waiting=dict.fromkeys(asked), got=[])
        if not asked:
            return state._replace(in_vain=state.in_vain + 1), [Commit(()), After(0.0, _CLIENTS)]
        state, alarm = self._watched(state, now)
        return state, actions + alarm

    def _wait(self, state: Rounds, now: float, found: int, roster: Roster) -> tuple[Rounds, list[Action]]:
        """For somebody to become available; the longer it has waited, the more seldom it looks."""
        since = min(state.since, now)
        later = max(soonest(roster, now, state.turn), now + (now - since) / 100)
        if later - since <= self.wait_seconds and later < math.inf:
            return state._replace(since=since), [After(later - now, _CLIENTS)]
        few = f"{found} of {len(roster.clients)} clients available, where a round needs min_replies={self.min_replies}"
        if later == math.inf:
            return state, [Stop(f"there are {few}, and no other ever will be; look at the population's availability")]
        waited = f"{later - since:.0f} seconds, above wait_seconds={self.wait_seconds:g}"
        return state, [Stop(f"there are {few}; to wait for others would take {waited}")]

    # A round ends

    def _watched(self, state: Rounds, now: float) -> tuple[Rounds, list[Action]]:
        """One `After` serves all rounds: it is set when there is none, and runs out before the open round's end."""
        left = state.opened + self.deadline_seconds - now
        if state.alarm < math.inf or left == math.inf:
            return state, []
        return state._replace(alarm=now + left), [After(left, _ROUND)]

    def _rung(self, state: Rounds, now: float, roster: Roster) -> tuple[Rounds, list[Action]]:
        if not state.waiting:
            return state, []
        if now >= state.opened + self.deadline_seconds:
            return self._close(state, now, roster)
        return self._watched(state, now)

    def _close_if_done(self, state: Rounds, now: float, roster: Roster) -> tuple[Rounds, list[Action]]:
        is_done = not state.waiting or (self.choice.is_exact and len(state.got) == self.cohort)
        return self._close(state, now, roster) if is_done else (state, [])

    def _close(self, state: Rounds, now: float, roster: Roster) -> tuple[Rounds, list[Action]]:
        """Commit what there is, if that is enough."""
        is_enough = len(state.got) >= self._least
        end: list[Action] = [GiveUp(tuple(state.waiting))] if state.waiting else []
        if state.got or is_enough:
            got = tuple(state.got)
            end.append(Commit(got) if is_enough else Discard(got))
        chosen = state.chosen
        for client in state.waiting:
            chosen = self.choice.lost(chosen, client)
        in_vain = 0 if is_enough and state.got else state.in_vain + 1
        state, more = self._open(state._replace(chosen=chosen, waiting={}, in_vain=in_vain), now, roster)
        return state, end + more

    def _excuse(self, state: Rounds) -> str:
        rounds = "the only round" if state.in_vain == 1 else f"{state.in_vain} rounds in a row"
        return (
            f"{rounds} committed nothing: each had fewer than min_replies={max(1, self._least)} answers within "
            f"{self.deadline_seconds:g} seconds; raise deadline_seconds or look at why clients are lost"
        )


def _begun(state: Rounds, began: float) -> Rounds:
    """A round begins when its clients are asked: after the exchange, where a channel is still at one."""
    return state._replace(opened=began) if state.opened < began < math.inf else state

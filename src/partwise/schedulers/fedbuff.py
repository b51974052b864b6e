"""FedBuff: replies are kept until there are K of them, and committed together. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from partwise.core.schedule import Action, Arrived, Commit, Discard, Event, ReplyInfo, Roster, Sampling, Scheduler, Stop
from partwise.schedulers.choice import require_exact
from partwise.schedulers.choices import Choice, Uniform
from partwise.schedulers.flights import (
    A_DAY,
    NOBODY,
    Flights,
    answered_,
    check_at_least,
    check_end,
    ending,
    is_alone,
    is_deserted,
    news_,
    set_alarm_,
    uncounted_,
)
from partwise.schedulers.replacements import check_concurrency, refill_
from partwise.schedulers.staleness import Constant, Polynomial, Staleness

__all__ = ["Buffered", "FedBuff"]

Replace = Literal["arrival", "commit"]


@dataclass
class Buffered:
    """State of `FedBuff`, changed in place.

    Args:
        flights: who is at work.
        version: commits so far.
        buffer: replies that wait; a client may be there twice.
        scales: what they count for.
    """

    flights: Flights
    version: int = 0
    buffer: list[ReplyInfo] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class FedBuff(Scheduler):
    """Many clients at work; whenever K have answered, their updates are committed, each times s(u).

    B <- B + s(u_i) v_i; after K of them w <- w + B / K and B <- 0. That is `Mean("cohort")` of updates of equal weight,
    as `FedAvg(weights="uniform")` has it; `Mean("holders")` divides per coordinate by the holders' s(u_i) instead (and
    multiplies by the buffer's mean s), which is better for submodels. Server learning rate and momentum are a server
    chain, `ServerSGD(lr, momentum)`.

    Args:
        buffer: K, replies in a commit, from 1 to `concurrency`.
        concurrency: clients at work at any time, >= 1; thousands in the paper.
        staleness: s.
        max_staleness: a reply that is staler is discarded; None: none is.
        replace: another client is asked when one has answered (`arrival`), which then may begin from a version that is
            about to be replaced; or only after the commit (`commit`), so that with K = `concurrency` nothing is stale,
            and nobody is in a commit twice, as long as there are others to ask.
        flush: whether what is in the buffer when the run's time is over is committed.
        versions: commits, after which it stops; 0 for no limit.
        seconds: when it stops at the latest.
        steps: local steps; 0 leaves them to the algorithm.
        patience_seconds: a client that has not answered after so long is given up and another asked. Default: a day.
        choice: whom it asks.

    Source: Nguyen et al., "Federated learning with buffered asynchronous aggregation", AISTATS 2022, arXiv:2106.06639,
        algorithm 1.
    Differs: the released simulator divides s(u) by s(1); FedScale divides by the sum of s(u) and averages models; both
        are not done here.
    """

    buffer: int = 10
    concurrency: int = 20
    staleness: Staleness = field(default_factory=Polynomial)
    max_staleness: int | None = None
    replace: Replace = "arrival"
    flush: bool = False
    versions: int = 100
    seconds: float = math.inf
    steps: int = 0
    patience_seconds: float = A_DAY
    choice: Choice = field(default_factory=Uniform)
    state_types: ClassVar[tuple[type, ...]] = (Buffered, Flights)

    @property
    def may_scale(self) -> bool:
        return self.staleness != Constant()

    @property
    def sampling(self) -> Sampling | None:
        least = 1 if self.flush else self.buffer
        return None if self.choice.draws is None else Sampling("public", float(self.buffer), least)

    def __post_init__(self) -> None:
        check_at_least(self, buffer=1, concurrency=1, steps=0)
        if self.max_staleness is not None:
            check_at_least(self, max_staleness=0)
        if self.buffer > self.concurrency:
            raise ValueError(
                f"FedBuff(buffer={self.buffer}, concurrency={self.concurrency}): a buffer must be at most the clients "
                f"at work, got {self.buffer} for {self.concurrency}. Lower it or have more of them at work."
            )
        if self.replace not in get_args(Replace):
            raise ValueError(f"FedBuff(replace={self.replace!r}): must be 'arrival' or 'commit'. 'arrival' is usual.")
        require_exact("FedBuff", self.choice)
        check_end(self, self.versions)

    def init(self, roster: Roster) -> Buffered:
        check_concurrency(self, roster)
        return Buffered(Flights(chosen=self.choice.init(roster)))

    def step(self, state: Buffered, event: Event, roster: Roster) -> tuple[Buffered, list[Action]]:
        if uncounted_(state, event):
            return state, []
        flights = state.flights
        actions: list[Action]
        if isinstance(event, Arrived):
            if not answered_(flights, event):
                return state, [Discard((event.reply,))]
            now, reply, began = event
            flights.chosen = self.choice.heard(flights.chosen, reply, now - began)
            freed, actions = self._kept_(state, reply)
            actions = ending(actions, self.versions, state.version)
        else:
            lost, woken, actions, end = news_(flights, event, self, self.choice)
            freed = lost + woken
            if end:
                return self._end(state, actions, end)
        kept = {reply.client for reply in state.buffer} if self.replace == "commit" else ()
        held = len(state.buffer) if self.replace == "commit" else 0
        actions += refill_(flights, self, event.now, roster, freed, held, without=kept)
        if kept and is_alone(flights):  # nobody else is left
            actions += refill_(flights, self, event.now, roster, kept, held)
        if is_deserted(flights):
            return self._end(state, actions, NOBODY)
        return state, actions + set_alarm_(flights, event.now, self)

    def _kept_(self, state: Buffered, reply: ReplyInfo) -> tuple[list[int], list[Action]]:
        """Who is free, and the commit or nothing."""
        stale, freed = state.version - reply.version, [reply.client]
        if self.max_staleness is not None and stale > self.max_staleness:
            return freed, [Discard((reply,))]
        state.buffer.append(reply)
        state.scales.append(self.staleness(max(0, stale)))
        if len(state.buffer) < self.buffer:
            return freed, []
        if self.replace == "commit":
            freed = [r.client for r in state.buffer]
        return freed, [_commit_(state)]

    def _end(self, state: Buffered, actions: list[Action], reason: str) -> tuple[Buffered, list[Action]]:
        if self.flush and state.buffer:
            actions = [*actions, _commit_(state)]
        return state, [*actions, Stop(reason)]


def _commit_(state: Buffered) -> Commit:
    """The buffer's commit; it is empty afterwards."""
    is_plain = all(scale == 1 for scale in state.scales)
    commit = Commit(tuple(state.buffer), () if is_plain else tuple(state.scales))
    state.buffer, state.scales, state.version = [], [], state.version + 1
    return commit

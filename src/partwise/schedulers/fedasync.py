"""FedAsync: every reply is committed at once, for less the staler it is. Standard library only."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from partwise.core.schedule import Action, Arrived, Commit, Discard, Event, Roster, Sampling, Scheduler, Stop
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
    is_deserted,
    news_,
    set_alarm_,
    uncounted_,
)
from partwise.schedulers.replacements import check_concurrency, refill_
from partwise.schedulers.staleness import Polynomial, Staleness

__all__ = ["Async", "FedAsync"]

AsyncWeighting = Literal["identical", "unbiased"]


@dataclass
class Async:
    """State of `FedAsync`, changed in place.

    Args:
        flights: who is at work.
        version: commits so far.
        durations: client -> seconds that its last task took, where that matters.
        frequency: sum of one over these.
    """

    flights: Flights
    version: int = 0
    durations: dict[int, float] = field(default_factory=dict)
    frequency: float = 0.0


@dataclass(frozen=True)
class FedAsync(Scheduler):
    """Each reply is committed when it comes, times alpha s(u); another client is asked in its place.

    With an algorithm inside `Mixing` this is the paper's rule, w <- (1 - a_t) w + a_t x_new with a_t = alpha s(u):
    the model is mixed with what the client ended with. With any other, what the client changed is added to a model that
    has moved on meanwhile, w <- w + a_t (x_new - x_0): FedBuff with a buffer of one.

    Args:
        alpha: weight of a fresh reply, in (0, 1] for mixing.
        staleness: s.
        concurrency: clients at work at any time, >= 1.
        max_staleness: a reply that is staler is discarded; None: none is.
        halve_at: versions from which on alpha is halved (once more), ascending.
        weighting: times 1 (`identical`, which favours fast clients), or times D_i = p_i tau_i sum over j of 1 / tau_j
            (`unbiased`), where tau is how long clients took for their last tasks and p_i is 1/N, or n_i / n with
            `FedAvg(weights="unbiased")`. All clients are at work then. D_i may exceed 1.
        versions: commits, after which it stops; 0 for no limit.
        seconds: when it stops at the latest.
        steps: local steps; 0 leaves them to the algorithm.
        patience_seconds: a client that has not answered after so long is given up and another asked. Default: a day.
        choice: whom it asks.

    Source: Xie, Koyejo and Gupta, "Asynchronous federated optimization", 2019, arXiv:1903.03934, algorithm 1;
        Fraboni, Vidal, Kameni and Lorenzi, "A general theory for federated optimization with asynchronous and
        heterogeneous clients updates", JMLR 24:110, 2023, arXiv:2206.10189 (`weighting`).
    Differs: alpha 0.6 and its halving (at version 800 of 2000 in the paper) are from memory; clients that were not
        heard of yet count for nothing in sum of 1 / tau_j. APPFL multiplies a_t by 1/N besides, the paper does not.
    """

    alpha: float = 0.6
    staleness: Staleness = field(default_factory=Polynomial)
    concurrency: int = 10
    max_staleness: int | None = None
    halve_at: tuple[int, ...] = ()
    weighting: AsyncWeighting = "identical"
    versions: int = 1000
    seconds: float = math.inf
    steps: int = 0
    patience_seconds: float = A_DAY
    choice: Choice = field(default_factory=Uniform)
    state_types: ClassVar[tuple[type, ...]] = (Async, Flights)

    @property
    def may_scale(self) -> bool:
        return True

    @property
    def sampling(self) -> Sampling | None:
        return None if self.choice.draws is None else Sampling("public", 1.0, 1)

    @property
    def counts_once(self) -> bool:
        return self.alpha <= 1 and self.weighting == "identical"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"FedAsync(alpha={self.alpha}): must be above 0, got {self.alpha}. 0.6 is usual.")
        check_at_least(self, concurrency=1, steps=0)
        if self.max_staleness is not None:
            check_at_least(self, max_staleness=0)
        if self.weighting not in get_args(AsyncWeighting):
            raise ValueError(
                f"FedAsync(weighting={self.weighting!r}): must be 'identical' or 'unbiased'. 'identical' is usual."
            )
        if list(self.halve_at) != sorted(set(self.halve_at)):
            raise ValueError(f"FedAsync(halve_at={self.halve_at}): versions must ascend, got others. Sort them.")
        require_exact("FedAsync", self.choice)
        check_end(self, self.versions)

    def init(self, roster: Roster) -> Async:
        check_concurrency(self, roster)
        if self.weighting == "unbiased" and self.concurrency < len(roster.clients):
            raise ValueError(
                f"FedAsync(weighting='unbiased', concurrency={self.concurrency}): weighs clients by how often they "
                f"answer when all of them are at work, got {len(roster.clients)} clients. Ask all, or use 'identical'."
            )
        return Async(Flights(chosen=self.choice.init(roster)))

    def step(self, state: Async, event: Event, roster: Roster) -> tuple[Async, list[Action]]:
        if uncounted_(state, event):
            return state, []
        flights = state.flights
        if isinstance(event, Arrived):
            if not answered_(flights, event):
                return state, [Discard([event.reply])]
            now, reply, began = event
            flights.chosen = self.choice.heard(flights.chosen, reply, now - began)
            actions, freed = self._committed(state, event, roster), [reply.client]
            actions = ending(actions, self.versions, state.version)
        else:
            lost, woken, actions, end = news_(flights, event, self, self.choice)
            freed = lost + woken
            if end:
                return state, [*actions, Stop(end)]
        actions += refill_(flights, self, event.now, roster, freed)
        if is_deserted(flights):
            return state, [*actions, Stop(NOBODY)]
        return state, actions + set_alarm_(flights, event.now, self)

    def _committed(self, state: Async, event: Arrived, roster: Roster) -> list[Action]:
        reply = event.reply
        share = 1.0
        if self.weighting == "unbiased":
            share = _share_(state, reply.client, max(event.now - event.began, 1e-9)) / len(roster.clients)
        stale = state.version - reply.version
        if self.max_staleness is not None and stale > self.max_staleness:
            return [Discard((reply,))]
        alpha = self.alpha * 0.5 ** bisect_right(self.halve_at, state.version) if self.halve_at else self.alpha
        scale = alpha * self.staleness(max(0, stale)) * share
        state.version += 1
        return [Commit((reply,), () if scale == 1 else (scale,))]


def _share_(state: Async, client: int, seconds: float) -> float:
    """tau_i times the sum of 1 / tau_j."""
    if client in state.durations:
        state.frequency -= 1 / state.durations[client]
    state.durations[client] = seconds
    state.frequency += 1 / seconds
    return seconds * state.frequency

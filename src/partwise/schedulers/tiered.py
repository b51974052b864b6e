"""Tiers: clients that are about as fast as one another have rounds of their own. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partwise.core.schedule import Action, Arrived, Commit, Discard, Event, ReplyInfo, Roster, Scheduler, Started, Stop
from partwise.schedulers.choice import picked, require_exact
from partwise.schedulers.choices import Choice, Uniform
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
from partwise.schedulers.replacements import Some

__all__ = ["Tier", "Tiered", "Tiers"]


@dataclass
class Tier:
    """Clients that have their rounds together.

    Args:
        clients: ascending.
        chosen: the choice's state.
        turn: rounds so far.
        waiting: how many of this round have neither answered nor been lost.
        got: the round's replies.
    """

    clients: tuple[int, ...]
    chosen: Any = ()
    turn: int = 0
    waiting: int = 0
    got: list[ReplyInfo] = field(default_factory=list)


@dataclass
class Tiers:
    """State of `Tiered`, changed in place.

    Args:
        flights: who is at work. After the warm-up it is tiers that are asleep.
        version: commits so far.
        seconds: client -> how long its warm-up task took.
        began: when the warm-up began.
        tiers: the fastest first; empty while warming up.
        tier_of: client -> its tier's number.
    """

    flights: Flights = field(default_factory=Flights)
    version: int = 0
    seconds: dict[int, float] = field(default_factory=dict)
    began: float = 0.0
    tiers: list[Tier] = field(default_factory=list)
    tier_of: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tiered(Scheduler):
    """Clients are put in tiers by how long a first task takes them; each tier has rounds of its own, at its own pace.

    All clients do one task, whose replies are discarded; the N/M fastest are tier 0, the next ones tier 1, and so on.
    Who is lost in it, or not there in time, is in the last one. From then on each tier asks a cohort of its clients,
    commits when all of them have answered, and asks the next. Tasks and replies carry the tier's number as their
    group. With the algorithm inside `CrossTier` this is FedAT; with any other, what a tier changed is added to the
    model.

    Args:
        tiers: M, from 1 to N.
        cohort: clients asked in a round of a tier, >= 1; all where there are fewer.
        versions: commits, after which it stops; 0 for no limit.
        seconds: when it stops at the latest.
        steps: local steps, also of the warm-up; 0 leaves them to the algorithm.
        patience_seconds: a client that has not answered after so long is given up, and its round committed without it;
            so long the warm-up waits for those who are not there. Default: a day.
        choice: whom a tier asks.

    Source: Chai et al., "FedAT: a high-performance and communication-efficient federated learning system with
        asynchronous tiers", SC 2021, arXiv:2010.05958.
    Differs: from memory: tiers of equal size, a fixed cohort, and a warm-up whose work is thrown away. No compression
        by itself: `Quantize` in the client chain.
    """

    tiers: int = 3
    cohort: int = 5
    versions: int = 100
    seconds: float = math.inf
    steps: int = 0
    patience_seconds: float = A_DAY
    choice: Choice = field(default_factory=Uniform)
    state_types: ClassVar[tuple[type, ...]] = (Tiers, Tier, Flights)

    @property
    def groups(self) -> int:
        return self.tiers

    def __post_init__(self) -> None:
        check_at_least(self, tiers=1, cohort=1, steps=0)
        require_exact("Tiered", self.choice)
        check_end(self, self.versions)

    def init(self, roster: Roster) -> Tiers:
        if self.tiers > len(roster.clients):
            raise ValueError(
                f"Tiered(tiers={self.tiers}): must be at most the population, got a population of "
                f"{len(roster.clients)}. Lower it or add clients."
            )
        self.choice.init(roster)  # refuses weights that are not one per client now, not after the warm-up
        return Tiers()

    def step(self, state: Tiers, event: Event, roster: Roster) -> tuple[Tiers, list[Action]]:
        if uncounted_(state, event):
            return state, []
        flights, now = state.flights, event.now
        actions: list[Action] = []
        match event:
            case Started():
                state.began = now
                for client in roster.clients:
                    actions += self._warmed_(state, client, now, roster)
            case Arrived(_, reply, began):
                if not answered_(flights, event):
                    return state, [Discard((reply,))]
                actions = self._arrived_(state, reply, now - began, now, roster)
            case _:
                lost, woken, actions, end = news_(flights, event, self)
                if end:
                    return state, [*actions, Stop(end)]
                for client in lost if state.tiers else ():
                    tier = state.tiers[state.tier_of[client]]
                    tier.chosen = self.choice.lost(tier.chosen, client)
                    actions += self._less_(state, state.tier_of[client], now, roster)
                for whom in woken:
                    act = self._opened_ if state.tiers else self._warmed_
                    actions += act(state, whom, now, roster)
        if not state.tiers and is_deserted(flights):
            actions += self._split_(state, now, roster)
        actions = ending(actions, self.versions, state.version)
        if is_deserted(flights):
            return state, [*actions, Stop(NOBODY)]
        return state, actions + set_alarm_(flights, now, self)

    def _warmed_(self, state: Tiers, client: int, now: float, roster: Roster) -> list[Action]:
        """Have a client's time taken, now or when it is there."""
        when = roster.next_available(client, now)
        if when <= now:
            return [ask_(state.flights, now, client, self.steps, -1)]
        if when <= state.began + self.patience_seconds:
            sleep_(state.flights, when, client)
        return []

    def _arrived_(self, state: Tiers, reply: ReplyInfo, seconds: float, now: float, roster: Roster) -> list[Action]:
        if not state.tiers:
            state.seconds[reply.client] = seconds
            return [Discard((reply,))]
        tier = state.tiers[state.tier_of[reply.client]]
        tier.chosen = self.choice.heard(tier.chosen, reply, seconds)
        tier.got.append(reply)
        return self._less_(state, state.tier_of[reply.client], now, roster)

    def _less_(self, state: Tiers, number: int, now: float, roster: Roster) -> list[Action]:
        """One less to wait for in a tier; the last one ends the round."""
        tier = state.tiers[number]
        tier.waiting -= 1
        if tier.waiting:
            return []
        actions: list[Action] = []
        if tier.got:
            actions, tier.got, state.version = [Commit(tuple(tier.got))], [], state.version + 1
        return actions + self._opened_(state, number, now, roster)

    def _split_(self, state: Tiers, now: float, roster: Roster) -> list[Action]:
        """The warm-up is over: make the tiers, and open each one's first round."""
        actions: list[Action] = []
        order = sorted(roster.clients, key=lambda client: (state.seconds.get(client, math.inf), client))
        bounds = [number * len(order) // self.tiers for number in range(self.tiers + 1)]
        for number in range(self.tiers):
            own = tuple(sorted(order[bounds[number] : bounds[number + 1]]))
            state.tiers.append(Tier(own, self.choice.init(Some(own, roster))))
            state.tier_of.update(dict.fromkeys(own, number))
        state.seconds = {}
        for number in range(self.tiers):
            actions += self._opened_(state, number, now, roster)
        return actions

    def _opened_(self, state: Tiers, number: int, now: float, roster: Roster) -> list[Action]:
        """The next round of a tier, or the moment at which somebody will be there."""
        tier = state.tiers[number]
        turn, tier.turn = tier.turn * self.tiers + number, tier.turn + 1
        count, own = min(self.cohort, len(tier.clients)), Some(tier.clients, roster)
        resting = resting_(state.flights, now)
        cohort, tier.chosen = picked(self.choice, tier.chosen, count, turn=turn, now=now, roster=own, busy=resting)
        if resting and not cohort and is_alone(state.flights):
            others = (roster.next_available(client, now) for client in tier.clients if client not in resting)
            if all(when == math.inf for when in others if when > now):
                cohort, tier.chosen = picked(self.choice, tier.chosen, count, turn=turn, now=now, roster=own)
        if not cohort:
            coming = (roster.next_available(client, resting.get(client, now)) for client in tier.clients)
            sleep_(state.flights, min((when for when in coming if when > now), default=math.inf), number)
        tier.waiting = len(cohort)
        for client in cohort:
            resting.pop(client, None)
        return [ask_(state.flights, now, client, self.steps, number) for client in cohort]

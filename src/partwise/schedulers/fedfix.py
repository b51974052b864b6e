"""FedFix: what has come in is committed at fixed intervals. Standard library only.

Notation: N clients, K of them in a commit; client i takes tau_i seconds, has the importance p_i and takes part in the
share r_i of all windows; dt is the period.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

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
    is_deserted,
    news_,
    set_alarm_,
    sleep_,
    uncounted_,
)

__all__ = ["FedFix", "Rate", "Windows"]

FixWeighting = Literal["measured", "estimated", "identical"]
_SLACK = 1e-9  # of a period: what ends with a window is in it, whatever comes first of two things at one time
_AVERAGE = 0.05  # rate of the running average of who takes part
_MOST = 10.0  # times N: bound of D_i / p_i
_TICK = 1


class Rate(NamedTuple):
    """How often a client took part: a running average, and the window it is of."""

    rate: float
    window: int


@dataclass
class Windows:
    """State of `FedFix`, changed in place.

    Args:
        flights: who is at work.
        version: commits so far.
        got: replies of this window.
        seconds: client -> how long the last task took that is in `got`, or was.
        ready: clients that were lost, which are to be asked when the window ends.
        rates: client -> its share of the windows.
        opened: when the last window that was looked at ended.
        window: its number.
        is_set: whether the next one's end is.
    """

    flights: Flights = field(default_factory=Flights)
    version: int = 0
    got: list[ReplyInfo] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)
    rates: dict[int, Rate] = field(default_factory=dict)
    opened: float = 0.0
    window: int = 0
    is_set: bool = False


@dataclass(frozen=True)
class FedFix(Scheduler):
    """All clients are at work; every dt seconds what has come is committed, and those who sent it begin anew.

    w <- w + sum of D_i v_i over those who have answered. The weights D_i make up for it that slow clients answer in few
    windows, so that what is minimised is sum of p_i f_i. p_i is 1/N with `FedAvg(weights="uniform")` and n_i / n with
    `FedAvg(weights="unbiased")`: their means divide by K, or by K/N times all examples, so that the scale of an update
    in a commit of K is D_i / p_i times K/N.

    Args:
        period_seconds: dt, > 0. From the slowest client's time on, this is federated averaging.
        weighting: D_i: `measured`, p_i ceil(tau_i / dt), by how long client i took this time; `estimated`, p_i / r_i,
            where r_i is a running average, at least 1 / (4 ceil(largest tau / dt)), and D_i at most 10 p_i N;
            `identical`, p_i, which favours fast clients.
        versions: commits, after which it stops; 0 for no limit.
        seconds: when it stops at the latest.
        steps: local steps; 0 leaves them to the algorithm.
        patience_seconds: a client that has not answered after so long is given up and asked again. Default: a day.

    Source: Fraboni, Vidal, Kameni and Lorenzi, "A general theory for federated optimization with asynchronous and
        heterogeneous clients updates", JMLR 24:110, 2023, arXiv:2206.10189.
    Differs: a window is longer by a part in 10^9, so that replies that come with its end are in it. `estimated` is
        ours; r_i begins as one over the windows of the first reply, and is a little high, by 2.5 % for every other
        window, since it is read after one in which the client took part. A window in which nobody answers commits
        nothing. Who was lost is asked at the next window's end; who is away, as soon as it is there, since it may be
        away whenever a window ends.
    """

    period_seconds: float = 60.0
    weighting: FixWeighting = "measured"
    versions: int = 100
    seconds: float = math.inf
    steps: int = 0
    patience_seconds: float = A_DAY
    state_types: ClassVar[tuple[type, ...]] = (Windows, Flights, Rate)

    @property
    def may_scale(self) -> bool:
        return True

    @property
    def sampling(self) -> Sampling | None:
        return Sampling("public", 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.period_seconds < math.inf:
            raise ValueError(
                f"FedFix(period_seconds={self.period_seconds}): must be above 0 and finite, got {self.period_seconds}. "
                "Half the slowest client's time is usual."
            )
        if self.weighting not in get_args(FixWeighting):
            raise ValueError(
                f"FedFix(weighting={self.weighting!r}): must be one of {', '.join(get_args(FixWeighting))}. "
                "'measured' is usual."
            )
        check_at_least(self, steps=0)
        check_end(self, self.versions)

    def init(self, roster: Roster) -> Windows:
        return Windows()

    def step(self, state: Windows, event: Event, roster: Roster) -> tuple[Windows, list[Action]]:
        if uncounted_(state, event):
            return state, []
        flights = state.flights
        actions: list[Action] = []
        if isinstance(event, Arrived):
            now, reply, began = event
            if not answered_(flights, event):
                return state, [Discard((reply,))]
            state.got.append(reply)
            state.seconds[reply.client] = now - began
            actions = self._tick_(state, now)
        elif isinstance(event, Started):
            state.opened = event.now
            actions = self._asked_(state, event.now, roster.clients, roster)
        elif isinstance(event, Deadline) and event.tag == _TICK:
            actions = ending(self._closed_(state, event.now, roster), self.versions, state.version)
        else:
            lost, woken, actions, end = news_(flights, event, self)
            if end:
                return state, [*actions, Stop(end)]
            actions += self._asked_(state, event.now, woken, roster)
            if lost:
                state.ready += lost
                actions += self._tick_(state, event.now)
        if is_deserted(flights) and not state.is_set:
            return state, [*actions, Stop(NOBODY)]
        return state, actions + set_alarm_(flights, event.now, self)

    def _asked_(self, state: Windows, now: float, clients: Iterable[int], roster: Roster) -> list[Action]:
        """Ask those who are there, and the others when they will be."""
        actions: list[Action] = []
        for client in clients:
            when = roster.next_available(client, now)
            if when <= now:
                actions.append(ask_(state.flights, now, client, self.steps))
            else:
                sleep_(state.flights, when, client)
        return actions

    def _tick_(self, state: Windows, now: float) -> list[Action]:
        """Be woken at the end of this window, once."""
        if state.is_set:
            return []
        number = self._windows(now - state.opened)
        state.is_set, state.window = True, state.window + number
        return [After(max(0.0, state.opened + number * self._period - now), _TICK)]

    def _closed_(self, state: Windows, now: float, roster: Roster) -> list[Action]:
        """The end of a window: commit, and send all who are not at work off."""
        state.is_set, state.opened = False, now
        got, ready, state.got, state.ready = state.got, state.ready, [], []
        actions: list[Action] = []
        if got:
            share = len(got) / len(roster.clients)
            scales = tuple(share * weight for weight in self._weights_(state, got, len(roster.clients)))
            state.version += 1
            actions.append(Commit(tuple(got), () if all(scale == 1 for scale in scales) else scales))
        return actions + self._asked_(state, now, [*(reply.client for reply in got), *ready], roster)

    def _weights_(self, state: Windows, got: Sequence[ReplyInfo], num_clients: int) -> list[float]:
        """D_i / p_i of each."""
        if self.weighting == "identical":
            return [1.0] * len(got)
        if self.weighting == "measured":
            return [float(self._windows(state.seconds[reply.client])) for reply in got]
        least = 1 / (4 * self._windows(max(state.seconds.values())))
        rates = [_rate_(state, reply.client) for reply in got]
        return [min(1 / max(rate, least), _MOST * num_clients) for rate in rates]

    @property
    def _period(self) -> float:
        return self.period_seconds * (1 + _SLACK)

    def _windows(self, seconds: float) -> int:
        """How many windows it takes."""
        return max(1, math.ceil(seconds / self._period))


def _rate_(state: Windows, client: int) -> float:
    """r_i, after this window, in which the client took part."""
    old = state.rates.get(client)
    rate = 1 / state.window
    if old is not None:
        rate = old.rate * (1 - _AVERAGE) ** (state.window - old.window) + _AVERAGE
    state.rates[client] = Rate(rate, state.window)
    return rate

"""The scheduler's protocol: who works, how long, and what is committed together. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, Literal, NamedTuple, Protocol

__all__ = [
    "Accept",
    "Action",
    "After",
    "Arrived",
    "Commit",
    "Deadline",
    "Discard",
    "Dispatch",
    "Event",
    "GiveUp",
    "Lost",
    "ReplyInfo",
    "Roster",
    "Sampling",
    "Scheduler",
    "Skipped",
    "Started",
    "Stop",
    "are_there",
]


class ReplyInfo(NamedTuple):
    """A reply as the scheduler sees it: no tensor in sight.

    Args:
        id: number of the dispatch it answers; unique in a run.
        client: who sent it.
        version: the server version whose values its work began from.
        steps: local steps it took.
        examples: how many it has; 0 behind a channel that reveals only sums, as the next one.
        loss: its mean training loss.
        group: as in its `Dispatch`.
        report: what else the algorithm has the client tell.
        uplink_bytes: of the message, for a scheduler that `measures`; 0 for others, as the next two.
        upload_seconds: how long it was under way, on the clocks of server and client.
        train_seconds: how long its client trained.
        scale: what the commit multiplies its updates by, as an aggregator is told; 1 before.
    """

    id: int
    client: int
    version: int
    steps: int
    examples: int
    loss: float = 0.0
    group: int = 0
    report: Mapping[str, float] = {}
    uplink_bytes: int = 0
    upload_seconds: float = 0.0
    train_seconds: float = 0.0
    scale: float = 1.0


class Started(NamedTuple):
    """The run begins."""

    now: float


class Arrived(NamedTuple):
    """A reply is in; its client was dispatched at `began`."""

    now: float
    reply: ReplyInfo
    began: float


class Deadline(NamedTuple):
    """An `After` has run out."""

    now: float
    tag: int


class Lost(NamedTuple):
    """An asked client will not answer; it was dispatched at `began`."""

    now: float
    client: int
    id: int
    began: float = math.inf


class Skipped(NamedTuple):
    """A `Commit` came to nothing, as its rule refused the updates or its exchange failed: there is no new version."""

    now: float


Event = Started | Arrived | Deadline | Lost | Skipped


class Dispatch(NamedTuple):
    """Ask a client to work.

    Args:
        client: whom.
        steps: local steps; 0 leaves it to the algorithm's plan.
        group: told to the client and back with its reply; what it means is between scheduler and algorithm.
        is_followed: another task comes before this one is answered, as the only one: the client fetches what it begins
            from while it trains, and this one's reply goes when the next begins, or comes to nothing.
    """

    client: int
    steps: int = 0
    group: int = 0
    is_followed: bool = False


class Accept(NamedTuple):
    """These replies will be in the next commit.

    Whoever else will be in it has been asked already, since the last commit. Said as soon as it is sure, it lets the
    server add up what it needs to keep no longer.
    """

    replies: Sequence[ReplyInfo]


class Commit(NamedTuple):
    """Reduce these replies and commit the result.

    Args:
        replies: whose updates.
        scales: what each update is multiplied by, such as s(staleness), one per reply; () for 1. Its weight stays.
    """

    replies: Sequence[ReplyInfo]
    scales: Sequence[float] = ()


class Discard(NamedTuple):
    """These replies will never be committed: the server forgets them."""

    replies: Sequence[ReplyInfo]


class GiveUp(NamedTuple):
    """These clients are not waited for: they are counted as lost, and what they may yet send is not taken."""

    clients: Sequence[int]


class After(NamedTuple):
    """Wake me in so many seconds."""

    seconds: float
    tag: int


class Stop(NamedTuple):
    """The run is over; what is said after it is not done.

    Args:
        reason: why.
        version: with this version, and not before. Said after a `Commit` that makes the last one: if that came to
            nothing, what is said after this is done, and the run goes on.
    """

    reason: str = "done"
    version: int = 0


Action = Dispatch | Accept | Commit | Discard | GiveUp | After | Stop


class Roster(Protocol):
    """What a scheduler may know of the population. seed: where its own randomness is derived from."""

    @property
    def clients(self) -> Sequence[int]: ...

    @property
    def seed(self) -> int: ...

    def next_available(self, client: int, now: float) -> float: ...

    def examples(self, client: int) -> int: ...


@singledispatch
def are_there(roster: Roster, clients: Sequence[int], now: float) -> list[bool]:
    """Whether each of some clients is available; a roster that can tell of many at once registers how."""
    return [roster.next_available(client, now) <= now for client in clients]


class Sampling(NamedTuple):
    """How those who take part in one commit are drawn, for the accountants of a privacy guarantee.

    Args:
        kind: `poisson`: each client independently with probability size / N; `fixed`: `size` different clients, every
            set of them equally likely; `public`: in some other way, which looks at nothing that clients keep private.
        size: how many take part, in expectation; 0 where it varies.
        at_least: fewer replies are never committed.
    """

    kind: Literal["poisson", "fixed", "public"]
    size: float
    at_least: int = 0


class Scheduler(Protocol):
    """A reducer over events; never sleeps, never asks for the time.

    `state_types`: the classes that its state is made of, beside plain trees and `ReplyInfo`, so that a run can be
    saved. `versions`: how many commits it makes before it stops; 0 where it cannot tell. `commits_together`:
    whether the clients that it asks in one step are committed together, as many of them as answer, or not at all.
    `is_fresh`: whether what it commits was always begun from the version that it is added to. `may_scale`: whether
    a commit may give updates scales. `sampling`: how those are drawn who take part in a commit; None where it
    cannot tell, or where they are chosen by what they keep private. `counts_once`: whether a commit has one reply
    of a client at most, and never scales it up. `measures`: whether it is told the bytes of replies and how long they
    took. `groups`: how many groups its tasks are of, from 0 on, where a task below 0 is of none so far; None where
    there is no end of them.
    """

    @property
    def measures(self) -> bool:
        return False

    @property
    def groups(self) -> int | None:
        return 1

    @property
    def state_types(self) -> tuple[type, ...]:
        return ()

    @property
    def versions(self) -> int:
        return 0

    @property
    def commits_together(self) -> bool:
        return False

    @property
    def is_fresh(self) -> bool:
        return False

    @property
    def may_scale(self) -> bool:
        return False

    @property
    def sampling(self) -> Sampling | None:
        return None

    @property
    def counts_once(self) -> bool:
        return False

    def init(self, roster: Roster) -> Any: ...

    def step(self, state: Any, event: Event, roster: Roster) -> tuple[Any, list[Action]]: ...

"""The scheduler's protocol: who works, how long, and what is committed together. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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
    "Lost",
    "ReplyInfo",
    "Roster",
    "Scheduler",
    "Started",
    "Stop",
]


class ReplyInfo(NamedTuple):
    """A reply as the scheduler sees it: no tensor in sight.

    Args:
        id: number of the dispatch it answers; unique in a run.
        client: who sent it.
        version: the server version its work began from.
        steps: local steps it took.
        examples: examples it trained on.
    """

    id: int
    client: int
    version: int
    steps: int
    examples: int


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


Event = Started | Arrived | Deadline | Lost


class Dispatch(NamedTuple):
    """Ask a client to work. steps: local steps; 0 leaves it to the algorithm's plan."""

    client: int
    steps: int = 0


class Accept(NamedTuple):
    """These replies will be in the next commit.

    Whoever else will be in it has been asked already, since the last commit. Said as soon as it is sure, it lets the
    server add up what it needs to keep no longer.
    """

    replies: Sequence[ReplyInfo]


class Commit(NamedTuple):
    """Reduce these replies and commit the result."""

    replies: Sequence[ReplyInfo]


class Discard(NamedTuple):
    """These replies will never be committed: the server forgets them."""

    replies: Sequence[ReplyInfo]


class After(NamedTuple):
    """Wake me in so many seconds."""

    seconds: float
    tag: int


class Stop(NamedTuple):
    """The run is over."""

    reason: str = "done"


Action = Dispatch | Accept | Commit | Discard | After | Stop


class Roster(Protocol):
    """What a scheduler may know of the population. seed: where its own randomness is derived from."""

    @property
    def clients(self) -> Sequence[int]: ...

    @property
    def seed(self) -> int: ...

    def next_available(self, client: int, now: float) -> float: ...


class Scheduler(Protocol):
    """A reducer over events; never sleeps, never asks for the time.

    `state_types`: the classes that its state is made of, beside plain trees and `ReplyInfo`, so that a run can be
    saved.
    """

    @property
    def state_types(self) -> tuple[type, ...]: ...

    def init(self, population: Roster) -> Any: ...

    def step(self, state: Any, event: Event) -> tuple[Any, list[Action]]: ...

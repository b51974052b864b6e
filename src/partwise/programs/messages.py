"""The messages between the server and its clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from partwise.core.aggregate import Running
from partwise.core.algorithm import Task
from partwise.core.codec import encoded_size, register
from partwise.core.index import Index
from partwise.core.schedule import ReplyInfo
from partwise.core.summing import Outcome
from partwise.core.update import Packed, Update

__all__ = [
    "Answer",
    "Ask",
    "Collect",
    "Errand",
    "Fetch",
    "Gathered",
    "Held",
    "Refusal",
    "Refused",
    "Released",
    "Reply",
    "Trouble",
    "measured_of",
]


@register
@dataclass(frozen=True, eq=False)
class Fetch:
    """A client asks for its part.

    Args:
        id: the task's.
        index: its part of every stream; of nothing, where `streams` says more.
        streams: stream -> its part of that stream; None for `index` in all of them.
    """

    id: int
    index: Index
    streams: Mapping[str, Index] | None = None

    def of(self, streams: Iterable[str]) -> Mapping[str, Index]:
        """Stream -> the part of it that is asked for, where the server has these streams."""
        return dict.fromkeys(streams, self.index) if self.streams is None else self.streams


@register
class Held(NamedTuple):
    """The server sends the part: stream -> held values, which a download chain may have packed."""

    id: int
    streams: Mapping[str, Mapping[str, Tensor | Packed]]


@register
class Reply(NamedTuple):
    """A client has worked.

    Args:
        updates: stream -> update; empty where a channel exchanges them later.
        fetched: when it had what it trains, on the client's clock.
        trained: when it ended.
        report: as in `ReplyInfo`.
        has_state: whether the algorithm keeps anything at the client, which is then told what was committed.
        turns: when training began and when this left, where that may not be at `fetched` and `trained`.
    """

    id: int
    steps: int
    examples: int
    loss: float
    updates: Mapping[str, Update]
    fetched: float = 0.0
    trained: float = 0.0
    report: Mapping[str, float] = {}
    has_state: bool = True
    turns: tuple[float, ...] = ()


def measured_of(reply: Reply, now: float) -> tuple[int, float, float]:
    """Of a reply that arrives now: its bytes, how long it was under way, how long its client trained.

    The second is right where the clocks of server and client agree.
    """
    began, left = reply.turns or (reply.fetched, reply.trained)
    return encoded_size(reply), now - left, reply.trained - began


@register
class Trouble(NamedTuple):
    """A client could not do a task."""

    id: int
    stage: str
    reason: str


@register
class Errand(NamedTuple):
    """The server asks a relay for the sum of what clients do. tasks: client and task, in order of client."""

    tasks: Sequence[tuple[int, Task]]


@register
class Collect(NamedTuple):
    """A relay asks for everything the server holds, for an errand. id: of its first task."""

    id: int


@register
class Refused(NamedTuple):
    """A client's update cannot be used."""

    id: int
    reason: str


@register
class Gathered(NamedTuple):
    """A relay has the sum of what clients did.

    Args:
        ids: of the tasks, as in the errand.
        outcomes: what became of each.
        sums: stream -> sum of the updates of all that have an `Outcome`.
    """

    ids: Sequence[int]
    outcomes: Sequence[Outcome | Trouble | Refused]
    sums: Mapping[str, Running]


@register
class Ask(NamedTuple):
    """One message of a channel's exchange, from the server. id: the reply whose update it is about."""

    session: int
    turn: int
    id: int
    stream: str
    body: Any


@register
class Answer(NamedTuple):
    """A client's answer to an `Ask`."""

    session: int
    turn: int
    body: Any


@register
class Refusal(NamedTuple):
    """A client does not answer an `Ask`, and says why."""

    session: int
    turn: int
    reason: str


@register
class Released(NamedTuple):
    """The exchange about a reply is over: the client may forget its update. Or a task that is followed is given up."""

    id: int


register(Outcome)
register(ReplyInfo)  # core/schedule.py knows no codec: it imports the standard library alone

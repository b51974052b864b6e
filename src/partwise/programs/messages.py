"""The messages between the server and its clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from partwise.core.codec import register
from partwise.core.index import Index
from partwise.core.model import Values
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Answer", "Ask", "Fetch", "Held", "Released", "Reply", "Trouble"]


@register
@dataclass(frozen=True, eq=False)
class Fetch:
    """A client asks for its part. id: the task's."""

    id: int
    index: Index


@register
class Held(NamedTuple):
    """The server sends the part: stream -> held values."""

    id: int
    streams: Mapping[str, Values]


@register
class Reply(NamedTuple):
    """A client has worked.

    Args:
        updates: stream -> update; empty where a channel exchanges them later.
        has_state: whether the algorithm keeps anything at the client, which is then told what was committed.
    """

    id: int
    steps: int
    examples: int
    loss: float
    updates: Mapping[str, Update]
    has_state: bool = True


@register
class Trouble(NamedTuple):
    """A client could not do a task."""

    id: int
    stage: str
    reason: str


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
class Released(NamedTuple):
    """The exchange about a reply is over: the client may forget its update."""

    id: int


register(ReplyInfo)  # core/schedule.py knows no codec: it imports the standard library alone

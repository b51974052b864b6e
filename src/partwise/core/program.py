"""What a node does: a reducer from messages to effects. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "RELAY",
    "SERVER",
    "Count",
    "Effect",
    "Failed",
    "Halt",
    "Message",
    "NodeId",
    "Program",
    "Record",
    "Send",
    "Wake",
    "Work",
    "always",
    "anything",
    "ignore",
    "never",
]

NodeId = int
SERVER: NodeId = -1
RELAY: NodeId = -2  # stands for clients, where the sum of their updates is enough


class Message(NamedTuple):
    """What a node receives. now: seconds since the run began, on the runtime's clock."""

    now: float
    me: NodeId
    src: NodeId
    body: Any


class Wake(NamedTuple):
    """A message to oneself: the start of the run (`tag` None) or a timer."""

    tag: int | None = None


class Failed(NamedTuple):
    """A runtime tells a node that its work raised.

    Args:
        stage: what was being done.
        reason: the sentence of the error.
        seed: of the job that failed, if it was one.
    """

    stage: str
    reason: str
    seed: int | None = None


class Send(NamedTuple):
    """Deliver `body` to a node, `after` seconds from now at the earliest.

    Args:
        lent: the tensors in the body are the sender's own, which it will not change: they take no memory of their own.
    """

    to: NodeId
    body: Any
    after: float = 0.0
    lent: bool = False


class Work(NamedTuple):
    """Local computation for an executor; its result comes back as a message to oneself.

    Args:
        job: what to compute; an executor knows its kind.
        steps: local steps, which a virtual clock charges at the node's pace.
    """

    job: Any
    steps: int


class Count(NamedTuple):
    """Bytes to be counted for messages that were not sent, since a relay stood for the client.

    Args:
        client: whose.
        uplink: bytes from it.
        downlink: bytes to it.
        messages: how many, both ways.
    """

    client: NodeId
    uplink: int
    downlink: int
    messages: int


class Record(NamedTuple):
    """A fact for the run's record."""

    kind: str
    fields: Mapping[str, Any]


class Halt(NamedTuple):
    """Stop the whole run."""

    reason: str


Effect = Send | Work | Count | Record | Halt


def always() -> bool:
    """True: a program whose whole state lies in what `step` returns."""
    return True


def never(state: Any) -> bool:
    """False: a program whose nodes keep something."""
    return False


def anything(body: Any) -> None:
    """Take every message: a program that meets nobody from outside."""


def ignore(spool: Any) -> None:
    """Take no spool: a program that keeps little."""


class Program(NamedTuple):
    """What a runtime runs, one per node.

    The state that `step` receives is consumed: `step` may overwrite the buffers in it, and only the state
    it returns may be used afterwards. A runtime saves it between two steps, while `is_settled()`. Before the first
    step it gives `attach` the `core.spool.Spool` in which the program may keep what is large. A state that `is_blank`
    may be forgotten: made anew by `init`, it would go on as the old one, so that a node which keeps nothing costs
    nothing. `rework` gives the work that is under way according to a node's state once more, if any is, so that a
    runtime need not keep it until its time has come. `check` raises ProtocolError for a message that nobody who keeps
    to the exchange would send; a runtime asks it of what comes from elsewhere, and hands over nothing else.
    """

    init: Callable[[NodeId], Any]
    step: Callable[[Any, Message], tuple[Any, list[Effect]]]
    is_settled: Callable[[], bool] = always
    attach: Callable[[Any], None] = ignore
    is_blank: Callable[[Any], bool] = never
    rework: Callable[[NodeId, Any], Work | None] | None = None
    check: Callable[[Any], None] = anything

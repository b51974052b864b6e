"""What moves messages between the server and the nodes that host its clients: four calls, whatever is underneath."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import NamedTuple, Protocol

from partwise.core.codec import encode_parts
from partwise.core.population import Client
from partwise.core.program import SERVER, Effect, Halt, NodeId, Record, Send
from partwise.core.spool import Kept
from partwise.runtimes.parcel import failed

__all__ = ["Body", "Envelope", "Kind", "Part", "Transport", "envelope_of", "joined", "parts_of"]

Part = bytes | bytearray | memoryview
Body = Kept | Part | list[bytes | memoryview]


class Kind(IntEnum):
    """What an envelope is."""

    READY = 1  # worker: is there
    MESSAGE = 2  # both ways: from one program to another
    RECORD = 3  # to the server: a fact for the run's record
    HALT = 4  # to the server: a program stops the run
    IDLE = 5  # worker: has handled `number` messages, and has nothing to do
    LOOK = 6  # from the server: say how things stand
    NODE = 7  # a client's state: part of the answer to LOOK, or what the client goes on from
    HELD = 8  # to the server, after LOOK: a message that was not handled yet
    LOOKED = 9  # to the server: that was all
    FATAL = 10  # worker: an error that no program caught
    LOST = 11  # to the server: a client is gone, with the messages it had; `fault` says why


class Envelope(NamedTuple):
    """A message and where it belongs.

    Args:
        kind: what it is.
        src: sending node.
        to: receiving node.
        number: of the message, or how many were handled.
        after: seconds to wait before it is delivered.
        body: the encoded message, whole when it comes, and perhaps in parts when it goes; or the message itself, to be
            encoded when its turn has come.
        fault: why there is no body.
        version: of the server when it was pushed.
        deadline: on the run's clock; nobody waits for an answer any longer. inf for ever.
        state: what the client goes on from, if its host does not know it.
    """

    kind: Kind
    src: NodeId = 0
    to: NodeId = 0
    number: int = 0
    after: float = 0.0
    body: Body = b""
    fault: str = ""
    version: int = 0
    deadline: float = math.inf
    state: Kept | None = None


class Transport(Protocol):
    """Moves envelopes to the hosts of the clients, and theirs to the server.

    The server pushes MESSAGE, and LOOK. It pulls MESSAGE, RECORD, HALT and LOST at any time; and after a LOOK the
    state of each client that has changed (NODE), unless states stay where the clients are, every message that was
    pushed and not handled (HELD), and LOOKED. What it pulls is of the client that it says: a transport lets no host
    speak for the clients of another.
    """

    def nodes(self) -> Collection[Client]:
        """The clients that can be reached now."""
        ...

    def push(self, envelopes: Iterable[Envelope]) -> None:
        """Put envelopes on their way; those to one client stay in order."""
        ...

    def pull(self) -> list[Envelope]:
        """What has come.

        Raises:
            ProtocolError: nothing can come any more.
        """
        ...

    def wait(self, seconds: float | None, minimum: int = 1) -> bool:
        """Wait until so many envelopes can be pulled, or so long; whether anything can still come."""
        ...


def parts_of(body: Body) -> list[Part]:
    """The encoded message, in parts."""
    if isinstance(body, Kept):
        return list(body.encoded())
    return [*body] if isinstance(body, list) else [body]


def joined(body: Body) -> Part:
    """The encoded message, whole."""
    parts = parts_of(body)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def envelope_of(me: NodeId, effect: Effect) -> Envelope | None:
    """What tells the server's process of a client's effect; None for what stays with the client.

    A message that cannot be encoded is the client's loss, which the server is told.
    """
    match effect:
        case Send(to, body, after) if after != math.inf:
            try:
                return Envelope(Kind.MESSAGE, me, to, after=after, body=list(encode_parts(body)))
            except (TypeError, ValueError) as error:
                parts = list(encode_parts(failed("encode", error)))
                return Envelope(Kind.MESSAGE, me, SERVER, after=after, body=parts)
        case Record(kind, fields):
            return Envelope(Kind.RECORD, me, body=list(encode_parts((kind, dict(fields)))))
        case Halt(reason):
            return Envelope(Kind.HALT, me, body=list(encode_parts(reason)))
    return None

"""Channels: how updates reach the aggregator and what that reveals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.rng import Rng
from partwise.core.update import Update

__all__ = [
    "Binding",
    "Channel",
    "ClientSession",
    "Guarded",
    "Opened",
    "Rounding",
    "Seat",
    "ServerSession",
    "fingerprint",
    "rounding_of",
]

Msg = Any
ServerSession = Generator[dict[Client, Msg], Mapping[Client, Msg], "Sum | Sequence[Update] | Opened"]
ClientSession = Generator[Msg, Msg, None]


class Opened(NamedTuple):
    """What an exchange has come to, where that is not all that was asked for.

    Args:
        got: as a channel returns it.
        clients: whose updates are in it; the others of the cohort are lost.
        told: numbers of all of them together, by name, for the record: `examples`, `loss`.
        refused: client -> why its messages could not be used.
    """

    got: Sum | Sequence[Update]
    clients: Collection[Client]
    told: Mapping[str, float] = {}
    refused: Mapping[Client, str] = {}


@dataclass(eq=False)
class Seat:
    """What a client knows of an exchange beside its update.

    Args:
        client: its own number.
        session: number of the exchange; a later one has a higher number.
        reply: number of the reply whose update it is about; a later one has a higher number.
        stream: which of its updates.
        given: name -> SHA-256 of the values it was given, for every parameter of the stream that it holds whole.
        examples: how many it has.
        loss: its mean training loss.
        rng: for choices that protect nothing, such as rounding.
        memory: what the channel keeps at this client from one exchange about the stream to the next; it never leaves
            the client, and is kept as the generator leaves it at each of its yields.
    """

    client: Client
    session: int = 0
    reply: int = 0
    stream: str = "model"
    given: Mapping[str, bytes] = field(default_factory=dict)
    examples: int = 0
    loss: float = 0.0
    rng: Rng = field(default_factory=Rng, repr=False)
    memory: dict[str, Any] = field(default_factory=dict, repr=False)


@runtime_checkable
class Channel(Protocol):
    """An exchange between the server and a cohort, as one generator per side.

    Server: `answers = yield messages`, as often as needed; the return value is what is opened. An answer
    that does not come in time is a missing key: a lost client. An exchange that cannot be finished raises
    ProtocolError: then nothing is committed, and the run goes on. Client: the first `yield` waits for the
    server's first message, each further one answers it and waits for the next; a ProtocolError is a refusal,
    of which the server is told.

    `exchanges` is False for a channel that simply sends the update with the reply; then neither generator
    runs. An interrupted session is never resumed: it is started again with fresh keys. Where only a sum is revealed,
    the reply says neither examples nor loss.
    """

    @property
    def reveals(self) -> Literal["sum", "each"]: ...

    @property
    def exchanges(self) -> bool: ...

    @property
    def limit(self) -> float | None:
        """The largest absolute value that it can carry: a chain in front of it must keep to it. None for any."""
        ...

    @property
    def patience_seconds(self) -> float:
        """How long the server waits for the answers to one message."""
        ...

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession: ...

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession: ...


@runtime_checkable
class Guarded(Protocol):
    """A channel that opens no sum of fewer clients' updates than so many."""

    @property
    def min_contributors(self) -> int: ...


@runtime_checkable
class Binding(Protocol):
    """A channel that may have no sum of clients that were given other values than the server's own."""

    @property
    def binds_model(self) -> bool: ...


@runtime_checkable
class Rounding(Protocol):
    """A channel that rounds: each value is off by less than `step`, for each unit of weight."""

    @property
    def step(self) -> float: ...


def rounding_of(channel: Channel, dim: int) -> float:
    """By how much, in norm, a channel may lengthen an update of so many values, for each unit of weight."""
    return channel.step * math.sqrt(dim) if isinstance(channel, Rounding) else 0.0


def fingerprint(values: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes, by which two clients can tell whether they were given the same values."""
    flat = values.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()

"""Channels: how updates reach the aggregator and what that reveals."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.update import Update

__all__ = ["Channel", "ClientSession", "ServerSession"]

Msg = Any
ServerSession = Generator[dict[Client, Msg], Mapping[Client, Msg], "Sum | Sequence[Update]"]
ClientSession = Generator[Msg, Msg, None]


@runtime_checkable
class Channel(Protocol):
    """An exchange between the server and a cohort, as one generator per side.

    Server: `answers = yield messages`, as often as needed; the return value is what is opened. An answer
    that does not come in time is a missing key: a lost client. Client: the first `yield` waits for the
    server's first message, each further one answers it and waits for the next.

    `exchanges` is False for a channel that simply sends the update with the reply; then neither generator
    runs. An interrupted session is never resumed: it is started again with fresh keys.
    """

    @property
    def reveals(self) -> Literal["sum", "each"]: ...

    @property
    def exchanges(self) -> bool: ...

    @property
    def patience_seconds(self) -> float:
        """How long the server waits for the answers to one message."""
        ...

    def server(self, cohort: Sequence[Client], params: Params) -> ServerSession: ...

    def client(self, update: Update, params: Params) -> ClientSession: ...

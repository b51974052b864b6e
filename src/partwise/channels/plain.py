"""The channel that hides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from partwise.core.channel import ClientSession, Seat, ServerSession
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.update import Update

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain:
    """The update travels in the reply, in the clear; the server sees each of them."""

    reveals: ClassVar[Literal["sum", "each"]] = "each"
    exchanges: ClassVar[bool] = False
    limit: ClassVar[float | None] = None
    patience_seconds: ClassVar[float] = 0.0

    def discloses(self) -> Sequence[str]:
        return ("The server sees each client's update, the rows it holds, its number of examples and its loss.",)

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession:
        updates = yield dict.fromkeys(cohort)
        return [updates[client] for client in sorted(updates)]

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession:
        yield
        yield update

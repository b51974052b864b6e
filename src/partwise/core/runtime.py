"""Runtimes: what makes time pass and messages move."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from partwise.core.codec import register
from partwise.core.ledger import Ledger
from partwise.core.population import Population
from partwise.core.program import NodeId, Program, Record

__all__ = ["Observer", "Runtime", "Traffic", "World"]


@register
@dataclass
class Traffic:
    """Bytes of encoded messages so far.

    Args:
        uplink: from clients.
        downlink: to clients.
        messages: how many, both ways.
        clients: client -> its own (uplink, downlink); who sent and received nothing is not in it.
    """

    uplink: int = 0
    downlink: int = 0
    messages: int = 0
    clients: Ledger = field(default_factory=Ledger)

    def count_(self, client: int, *, uplink: int = 0, downlink: int = 0, messages: int = 1) -> None:
        """Count messages to or from a client."""
        self.clients.add_(client, uplink, downlink)
        self.uplink += uplink
        self.downlink += downlink
        self.messages += messages


class World(Protocol):
    """What an observer may see of a run, between two steps."""

    @property
    def now(self) -> float: ...

    @property
    def traffic(self) -> Traffic: ...

    def state(self, node: NodeId) -> Any:
        """A node's state; None for a node that has not been started. Not to be changed."""
        ...

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        """All that is needed to go on from here, by name, and the names unchanged since the last call."""
        ...


class Observer(Protocol):
    """Is told each record, and may stop the run.

    Of an observer that derives from this class, only the other three methods must be written.
    """

    def heard(self, now: float, src: NodeId, tag: int) -> str | None:
        """The server is about to handle a message, told as in `Heard`. A sentence stops the run before it."""
        return None

    def record(self, record: Record, world: World) -> str | None:
        """A sentence stops the run after the current step."""
        ...

    def settled(self, world: World) -> None:
        """Called after a step that recorded something, when the world may be saved."""
        ...

    def ended(self, world: World, reason: str) -> None:
        """Called once, when the run is over."""
        ...


class Runtime(Protocol):
    """Runs programs until one of them halts the run, the observer stops it, or nothing is left to do.

    `relays`: whether it is to be given programs in which a relay stands for clients, where that may be; it must know
    `core.summing.SumJob` then, and `core.program.Count`.
    """

    @property
    def relays(self) -> bool: ...

    def run(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        observer: Observer,
        *,
        until: float | None = None,
        entries: Mapping[str, object] | None = None,
    ) -> tuple[Mapping[NodeId, Any], str]:
        """The states of all started nodes, and why the run ended.

        Args:
            programs: one per node. That of `SERVER` must be there, also where peers need no server: it alone is woken
                when the run begins, and wakes the others by what it sends them.
            population: the clients' speed and links.
            observer: is told what happens.
            until: seconds on the runtime's clock.
            entries: what `World.entries` gave, to go on from there.
        """
        ...

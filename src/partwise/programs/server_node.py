"""What the server of the star keeps between messages, and what of it goes into the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from partwise.core.aggregate import Running
from partwise.core.algorithm import ServerState, Task
from partwise.core.codec import register
from partwise.core.program import Record
from partwise.core.spool import Kept
from partwise.core.summing import Outcome
from partwise.core.transform import State
from partwise.programs.messages import Refused, Trouble

__all__ = ["InFlight", "ServerNode", "Waiting", "replies_of"]


@register
@dataclass
class InFlight:
    """A task that was dispatched and not yet answered. version: of the values that its client has, from then on."""

    task: Task
    client: int
    began: float
    version: int


@register
class Waiting(NamedTuple):
    """A reply that was not committed yet.

    Args:
        client: who sent it.
        loss: the client's mean training loss.
        updates: stream -> update, in a spool, until it is added up.
    """

    client: int
    loss: float
    updates: dict[str, Kept]


@register
@dataclass
class ServerNode:
    """What the server keeps between messages.

    Args:
        streams: stream -> parameters.
        version: commits made.
        schedule: the scheduler's state.
        reducers: stream -> the aggregator's state.
        chains: stream -> state of the server chain.
        in_flight: task -> what is known of it.
        inbox: task -> the reply, until it is committed.
        attempts: client -> (version, how often it was asked at it); of this version.
        told: client with a state -> its tasks whose replies were committed, until it has answered a task that told it
            so.
        accepted: replies that will be in the next commit and are not added up yet.
        added: replies that are.
        sums: stream -> their sum.
        next_id: number of the next task.
        stopped: whether the scheduler has stopped.
    """

    streams: ServerState
    version: int = 0
    schedule: Any = None
    reducers: dict[str, State] = field(default_factory=dict)
    chains: dict[str, State] = field(default_factory=dict)
    in_flight: dict[int, InFlight] = field(default_factory=dict)
    inbox: dict[int, Waiting] = field(default_factory=dict)
    attempts: dict[int, tuple[int, int]] = field(default_factory=dict)
    told: dict[int, tuple[int, ...]] = field(default_factory=dict)
    accepted: dict[int, None] = field(default_factory=dict)
    added: dict[int, None] = field(default_factory=dict)
    sums: dict[str, Running] = field(default_factory=dict)
    next_id: int = 0
    stopped: bool = False


def replies_of(now: float, version: int, told: Iterable[tuple[InFlight, Outcome | Trouble | Refused]]) -> Record:
    """The replies among what a relay has told, column by column."""
    found = [(flight, outcome) for flight, outcome in told if isinstance(outcome, Outcome)]
    fields = {
        "client": [flight.client for flight, _ in found],
        "id": [flight.task.id for flight, _ in found],
        "steps": [outcome.steps for _, outcome in found],
        "examples": [outcome.examples for _, outcome in found],
        "loss": [outcome.loss for _, outcome in found],
        "began": [flight.began for flight, _ in found],
        "fetched": [now] * len(found),
        "trained": [now] * len(found),
        "staleness": [version - flight.version for flight, _ in found],
    }
    return Record("replies", fields)

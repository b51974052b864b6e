"""How a run stands, who its nodes are, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Incident", "Node", "Standing"]


class Incident(NamedTuple):
    """A client that was lost or refused, a round that was skipped, or a node that failed or sent what was rejected.

    Args:
        kind: `lost`, `refused`, `skipped`, `failed` or `rejected`; the last two are said of nodes.
        client: its number; None if it is no client.
        name: of the client or the node; empty for a round.
        version: that the work began from; None where that is not known.
        stage: in which it was lost.
        reason: as recorded, without control characters and cut to 500 of them.
        traceback: the node's own, if it was recorded: its last 4,000 characters.
        seconds: when it was noticed, on the run's clock.
    """

    kind: str
    client: int | None
    name: str
    version: int | None
    stage: str
    reason: str
    traceback: str
    seconds: float


class Node(NamedTuple):
    """A node of a run on a network.

    Args:
        name: of the node.
        is_there: whether it was when the record was written last.
        since: when it came or went, on the run's clock.
        clients: that it has.
        errors: how often work failed at it.
        rejected: how often it sent what was not taken.
    """

    name: str
    is_there: bool = False
    since: float = 0.0
    clients: int = 0
    errors: int = 0
    rejected: int = 0


class Standing(NamedTuple):
    """How a run stands.

    Args:
        name: of the run.
        folder: of the run.
        status: in words.
        is_running: whether a process writes it.
        noun: what a version is called.
        version: the last one on record.
        total: how many there will be; 0 if nobody knows.
        seconds: on the run's clock.
        is_virtual: whether that is the simulator's.
        metric: the main one.
        scope: over what it is measured.
        value: of the main metric when it was measured last; nan before, and so for the next three.
        best: that it ever was.
        loss: mean training loss of the last version's clients.
        epsilon: what was spent of a privacy guarantee.
        guarantee: the guarantee in words; empty if there is none.
        uplink: bytes from clients so far.
        downlink: bytes to clients so far.
        clients: in the population.
        answered: clients that gave a reply, or had trouble.
        replies: that arrived.
        lost: tasks that were lost.
        refused: replies that were refused.
        skipped: rounds that committed nothing.
        staleness: of the last version's replies, in the mean; nan before the first.
        seconds_left: on the wall's clock, judged by what was seen while following; nan if nobody knows.
        written_at: when the record was written last, in seconds since 1970.
        about: algorithm, scheduler, workload, runtime and seed, as recorded.
    """

    name: str
    folder: str
    status: str
    is_running: bool
    noun: str
    version: int
    total: int
    seconds: float
    is_virtual: bool
    metric: str
    scope: str
    value: float
    best: float
    loss: float
    epsilon: float
    guarantee: str
    uplink: int
    downlink: int
    clients: int
    answered: int
    replies: int
    lost: int
    refused: int
    skipped: int
    staleness: float
    seconds_left: float
    written_at: float
    about: Mapping[str, str]

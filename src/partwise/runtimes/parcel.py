"""Messages under way, and the entries of a saved world: the same form for every runtime."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from partwise.core.codec import register
from partwise.core.heard import FAILURE, START
from partwise.core.plan import Job, Trained
from partwise.core.program import SERVER, Failed, NodeId, Program, Wake
from partwise.core.runtime import Traffic
from partwise.core.spool import Kept, Spool, footprint, owned

__all__ = [
    "Entries",
    "Opened",
    "Parcel",
    "Queue",
    "clock_of",
    "failed",
    "packed",
    "reworked",
    "tag_of",
    "told",
    "unpacked",
]

register(Wake)  # core/program.py knows no codec: it imports the standard library alone
register(Failed)


@register
@dataclass(eq=False)
class Parcel:
    """A message under way.

    Ties in time go to the lower client, then to the message sent first: of clients that take no time, one has replied
    before the next one replies, so that their messages are never all there at once. What is late comes after all of
    them: the results of jobs that take no time, so that jobs of many clients can be run together.

    Args:
        time: when it is delivered.
        is_late: whether all else that happens at that time comes first.
        client: whom it concerns: the higher of sender and receiver, which is never the server if there is a choice.
        number: how many were sent before.
        src: sender.
        to: receiver.
        size: bytes of the start values of the job that it brings the result of.
        seed: of that job.
        is_lent: whether the tensors in it are the sender's.
    """

    time: float
    is_late: bool
    client: NodeId
    number: int
    src: NodeId
    to: NodeId
    size: int = 0
    seed: int = 0
    is_lent: bool = False
    body: Kept | None = field(default=None, init=False, repr=False)  # None: not computed yet
    rank: tuple[float, bool, NodeId, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rank = self.time, self.is_late, self.client, self.number

    def hurry(self) -> None:
        """Let it be late no longer."""
        self.is_late = False
        self.__post_init__()

    def stamped(self, body: Kept | None) -> Parcel:
        """The same parcel, with what is in it."""
        self.body = body
        return self


class Queue:
    """Parcels under way, of which the first is at hand.

    Args:
        parcels: what is in it at first.
    """

    def __init__(self, parcels: Iterable[Parcel] = ()) -> None:
        self._heap = [(parcel.rank, parcel) for parcel in parcels]  # of ranks, no two of which are equal
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Parcel]:
        return (parcel for _, parcel in self._heap)

    @property
    def first(self) -> Parcel:
        """The parcel that comes first."""
        return self._heap[0][1]

    def push(self, parcel: Parcel) -> None:
        """Put one in."""
        heapq.heappush(self._heap, (parcel.rank, parcel))

    def pop(self) -> Parcel:
        """Take the first one out."""
        return heapq.heappop(self._heap)[1]


class Entries(Mapping[str, object]):
    """Entries by name; those that lie in a spool's file are read when they are asked for."""

    def __init__(self, entries: Mapping[str, object]) -> None:
        self._entries = entries

    def with_(self, name: str, entry: object) -> Entries:
        """These and one more."""
        return Entries({**self._entries, name: entry})

    def __getitem__(self, name: str) -> object:
        found = self._entries[name]
        return found.tree if isinstance(found, Kept) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Opened(Mapping[NodeId, Any]):
    """The states of nodes, read when they are asked for."""

    def __init__(self, states: Mapping[NodeId, Kept]) -> None:
        self._states = states

    def __getitem__(self, node: NodeId) -> Any:
        return self._states[node].tree

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


def failed(stage: str, error: Exception) -> Failed:
    """What a node is told of an error."""
    return Failed(stage, f"{type(error).__name__}: {error}")


def told(result: Trained | Exception, seed: int) -> Trained | Failed:
    """What a node is told of its job, by the job's seed."""
    if isinstance(result, Exception):
        return failed("train", result)._replace(seed=seed)
    return Trained(result.change, result.steps, result.loss, seed)


def tag_of(body: Any) -> int:
    """The tag under which a message to the server is logged."""
    kind = type(body)
    if kind is Wake:
        return START if body.tag is None else int(body.tag)
    return FAILURE if kind is Failed else 0


def reworked(parcel: Parcel, program: Program, state: Kept | None) -> Job | None:
    """The job whose result a parcel brings, made again from its node's state; None if the node has given it up."""
    work = None if program.rework is None or state is None else program.rework(parcel.to, state.tree)
    return work.job if work is not None and work.job.seed == parcel.seed else None


def clock_of(now: float, number: int, traffic: Traffic, halted: str) -> dict[str, object]:
    """The clock's entry, which no later message changes. halted: why a program has halted the run, if one has."""
    traffic = replace(traffic, clients=traffic.clients.copy())
    return {"now": now, "number": number, "traffic": traffic, "halted": halted}


def packed(clock: object, parcels: Iterable[Parcel], states: Mapping[NodeId, Kept]) -> Entries:
    """The entries of a world: the clock, the queue, every message in it, every node.

    They are to be encoded before the world goes on. A message that is still to be computed is None.
    """
    queue = sorted(parcels, key=lambda parcel: parcel.rank)
    entries: dict[str, object] = {"clock": clock, "queue": queue}
    entries.update({f"message/{parcel.number}": parcel.body for parcel in queue})
    entries.update({f"node/{node}": state for node, state in states.items()})
    return Entries(entries)


def unpacked(entries: Mapping[str, object], spool: Spool) -> tuple[Any, list[Parcel], dict[NodeId, Kept]]:
    """What `packed` was given; one entry after another is read."""

    def kept(name: str) -> Kept:
        tree = owned(entries[name])
        return spool.keep(tree, 0 if name == f"node/{SERVER}" else footprint(tree))

    clock, queue = entries["clock"], entries["queue"]
    assert isinstance(queue, list)
    parcels = []
    for parcel in queue:
        name = f"message/{parcel.number}"
        parcel.is_lent = False
        parcels.append(parcel.stamped(None if entries[name] is None else kept(name)))
    nodes = [name for name in entries if name.startswith("node/")]
    return clock, parcels, {int(name.removeprefix("node/")): kept(name) for name in nodes}

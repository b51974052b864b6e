"""A run again, from the log of the messages that its server handled."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from partwise.core.codec import encoded_size
from partwise.core.errors import CheckpointError, ProtocolError
from partwise.core.heard import FAILURE, Heard
from partwise.core.plan import Executor, ran
from partwise.core.population import Population
from partwise.core.program import SERVER, Effect, Halt, Message, NodeId, Program, Record, Send, Wake, Work
from partwise.core.runtime import Observer, Runtime, Traffic, World
from partwise.core.spool import DEFAULT_MEMORY_BYTES, Kept, footprint, halves
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.parcel import Opened, Parcel, Queue, clock_of, packed, tag_of, told

__all__ = ["Replay", "Retrace"]

Row = tuple[float, NodeId, int]  # a `Heard`, or the like

_OVER = "the log is over"


@dataclass(frozen=True)
class Replay:
    """Delivers to the server, in one process, the messages of a log: in its order, and at its times.

    Of what a client has sent and the server has not handled, that comes first which is due first; a client works only
    when the log comes to a message that it has not sent yet. So a run on the wall clock, whose messages raced one
    another, is made again bit by bit, if its executor trains a client alike whoever else is trained.

    When the clients handled their messages is not in a log. Here they do so as soon as these are sent, and are through
    with their work when the log has its result. Where a client became unavailable in between, or a message overtook an
    earlier one of the same client on a slow link, what follows can differ.

    Args:
        log: what `Observer.heard` was told, message by message.
        executor: runs local plans, one by one; not one that is `core.plan.Resident`.
        memory_bytes: as in `Simulate`.
        folder: as in `Simulate`.
    """

    log: Sequence[Row] = field(repr=False)
    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    relays: ClassVar[bool] = False

    def run(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        observer: Observer,
        *,
        until: float | None = None,
        entries: Mapping[str, object] | None = None,
    ) -> tuple[Mapping[NodeId, Any], str]:
        """As `Runtime.run`, always from the beginning.

        Raises:
            CheckpointError: a saved run is to be gone on with.
            ProtocolError: a message of the log does not fit what the programs have sent.
        """
        if entries is not None:
            raise CheckpointError("Replay(): begins at the beginning, got a saved run. Replay into a new folder.")
        world = _World(programs, self.executor, (self.memory_bytes, self.folder))
        reason = world.run(observer, self.log, math.inf if until is None else until)
        observer.ended(world, reason)
        return Opened(world.nodes), reason


class _World:
    def __init__(self, programs: Mapping[NodeId, Program], executor: Executor, memory: tuple[int, str | None]) -> None:
        self.now, self.traffic = 0.0, Traffic()
        self.nodes: dict[NodeId, Kept] = {}
        self._programs, self._executor = programs, executor
        self._spool, replies = halves(*memory)
        self._timers: dict[int, Queue] = {}  # by tag
        self._to: dict[NodeId, Queue] = {}  # client -> what it has not handled
        self._of: dict[NodeId, Queue] = {}  # client -> what it has sent to the server
        self._number = 0
        self._halted = ""
        programs[SERVER].attach(replies)
        self._push(0.0, SERVER, SERVER, Wake())

    def state(self, node: NodeId) -> Any:
        return self.nodes[node].tree if node in self.nodes else None

    def run(self, observer: Observer, log: Sequence[Row], until: float) -> str:
        for at, row in enumerate(log, 1):
            now, src, tag = row
            if now > until:
                return "time is up"
            body = self._found(_Place(at, row, len(log)))
            self.now = now
            stop = observer.heard(now, src, tag)
            if stop:
                return stop
            records = self._step(SERVER, src, body, now)
            stops = [observer.record(record, self) for record in records]
            if records and self._programs[SERVER].is_settled():
                observer.settled(self)
            if any(stops):
                return next(stop for stop in reversed(stops) if stop)
        return self._halted or _OVER

    def _found(self, place: _Place) -> Any:
        """The message that the log has next."""
        now, src, tag = place.row
        if self._halted:
            place.refuse(f"the run is over: {self._halted}")
        if now < self.now:
            place.refuse(f"it is {self.now!r} s already")
        if tag == FAILURE and src != SERVER:
            place.refuse("what a worker takes with it when it dies, or a message that cannot be read, is in no log")
        if src == SERVER:
            waiting = self._timers.get(tag)
        else:
            self._advance(src, now)
            waiting = self._of.get(src)
        if not waiting:
            place.refuse("no such timer runs" if src == SERVER else "the client has nothing to say")
        if src == SERVER and waiting.first.time > now:
            place.refuse(f"it comes at {waiting.first.time!r} s at the earliest")
        body = waiting.pop().body
        assert body is not None
        return body.take()

    def _advance(self, client: NodeId, now: float) -> None:
        """Let a client handle what it was sent until it has sent something itself."""
        inbox, sent = self._to.get(client), self._of.setdefault(client, Queue())
        while inbox and inbox.first.time <= now and not (sent and sent.first.time <= now):
            parcel = inbox.pop()
            assert parcel.body is not None
            self._step(client, parcel.src, parcel.body.take(), parcel.time, results_at=now)

    def _step(self, node: NodeId, src: NodeId, body: Any, now: float, results_at: float | None = None) -> list[Record]:
        program = self._programs[node]
        state = self.nodes.pop(node).take() if node in self.nodes else program.init(node)
        state, effects = program.step(state, Message(now, node, src, body))
        if node == SERVER or not program.is_blank(state):
            self.nodes[node] = self._spool.keep(state, 0 if node == SERVER else None)
        return self._apply(node, effects, now, now if results_at is None else results_at)

    def _apply(self, me: NodeId, effects: Sequence[Effect], now: float, results_at: float) -> list[Record]:
        records: list[Record] = []
        for effect in effects:
            match effect:
                case Send(to, body, after, lent) if after != math.inf:
                    self._count(me, to, body)
                    self._push(now + after, me, to, body, 0 if lent else None)
                case Work(job, _):
                    (result,) = ran(self._executor, [job])
                    self._push(results_at, me, me, told(result, job.seed))
                case Record():
                    records.append(effect)
                case Halt(reason):
                    self._halted = reason
        return records

    def _count(self, src: NodeId, to: NodeId, body: Any) -> None:
        if src != to:
            size = encoded_size(body)
            self.traffic.count_(max(src, to), **{"uplink" if to == SERVER else "downlink": size})

    def _push(self, time: float, src: NodeId, to: NodeId, body: Any, size: int | None = None) -> None:
        if to != SERVER:
            heap = self._to.setdefault(to, Queue())
        elif src == SERVER:
            heap = self._timers.setdefault(tag_of(body), Queue())
        else:
            heap = self._of.setdefault(src, Queue())
        size = footprint(body) if size is None else size
        parcel = Parcel(time, False, max(src, to), self._number, src, to).stamped(self._spool.keep(body, size))
        heap.push(parcel)
        self._number += 1

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        queue = [parcel for heaps in (self._timers, self._to, self._of) for heap in heaps.values() for parcel in heap]
        return packed(clock_of(self.now, self._number, self.traffic, self._halted), queue, self.nodes), ()


@dataclass(frozen=True)
class Retrace:
    """A runtime that does the same every time, held to the log of its first time.

    Args:
        log: what `Observer.heard` was told then.
        runtime: what made it, such as `Simulate`.
        notes: what its executor had noted of itself by the end.
    """

    log: Sequence[Row] = field(repr=False)
    runtime: Runtime
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def relays(self) -> bool:
        return self.runtime.relays

    def run(
        self,
        programs: Mapping[NodeId, Program],
        population: Population,
        observer: Observer,
        *,
        until: float | None = None,
        entries: Mapping[str, object] | None = None,
    ) -> tuple[Mapping[NodeId, Any], str]:
        """As `Runtime.run`.

        Raises:
            ProtocolError: a message is not that of the log.
        """
        follower = _Follower(observer, self.log)
        noted = {"executor": (self.notes, self.notes)} if self.notes else None
        states, reason = self.runtime.run(programs, population, follower, until=until, entries=entries or noted)
        return states, reason


class _Follower(Observer):
    """Another observer, and a log that must be gone through."""

    def __init__(self, inner: Observer, log: Sequence[Row]) -> None:
        self._inner, self._rows, self._count, self._of = inner, iter(log), 0, len(log)

    def heard(self, now: float, src: NodeId, tag: int) -> str | None:
        row = next(self._rows, None)
        if row is None:
            return _OVER
        self._count += 1
        if tuple(row) != (now, src, tag):
            _Place(self._count, row, self._of).refuse(f"what comes next is {Heard(now, src, tag)}")
        return self._inner.heard(now, src, tag)

    def record(self, record: Record, world: World) -> str | None:
        return self._inner.record(record, world)

    def settled(self, world: World) -> None:
        self._inner.settled(world)

    def ended(self, world: World, reason: str) -> None:
        self._inner.ended(world, reason)
        row = next(self._rows, None)
        if row is not None:
            _Place(self._count + 1, row, self._of).refuse(f"the run is over: {reason}")


@dataclass(frozen=True)
class _Place:
    """Message number `at` of a log of so many."""

    at: int
    row: Row
    of: int

    def refuse(self, why: str) -> NoReturn:
        """Say that the log does not fit here."""
        raise ProtocolError(
            f"Replay(log of {self.of:,} messages): message {self.at:,} must be what the run comes to, got "
            f"{Heard(*self.row)}, but {why}. The log was altered, or is of another specification, version or machine."
        )

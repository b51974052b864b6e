"""The wall clock: the server in this process, the clients in worker processes, encoded messages between them."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partwise.core.codec import DEFAULT_MAX_BYTES, decode, encoded_size
from partwise.core.errors import CompositionError, ProtocolError
from partwise.core.plan import Executor, Resident
from partwise.core.population import Population
from partwise.core.program import SERVER, Effect, Failed, Halt, Message, NodeId, Program, Record, Send, Wake, Work
from partwise.core.runtime import Observer, Traffic
from partwise.core.spool import DEFAULT_MEMORY_BYTES, Kept, halves, owned
from partwise.runtimes.crew import Crew, Hand
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.parcel import Opened, Parcel, clock_of, packed, reworked, tag_of, told, unpacked
from partwise.runtimes.wire import Frame, Kind
from partwise.runtimes.worker import WorkerPlan

__all__ = ["Processes"]

_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Processes:
    """One operating-system process per worker, real messages between them, the wall clock.

    Client c lives in worker `c % workers`. Workers are forked when the run begins and inherit the programs, so that
    nothing is pickled. Each computes with as many torch threads as this process; workers times threads should not be
    more than there are cores, or they take the cores from one another. What a message takes is what it takes: the
    population's profiles are not looked at.

    A worker that dies takes the tasks of its clients with it: the server counts them as lost, and the worker is
    started again. Its clients go on from their state when the world was last looked at (a checkpoint, or an
    evaluation per client), or from the beginning.

    Args:
        workers: how many, >= 1.
        executor: runs local plans, in the workers; not one that is `core.plan.Resident`.
        memory_bytes: bound of the memory for replies that wait for a commit (half of it) and for messages under way
            and client states (the other half), in this process, and for as much again in all workers together; what
            is more goes to temporary files. No result depends on it.
        folder: where those files are; the system's folder for temporary files by default.
        max_message_bytes: a longer message from a client is refused.
        max_restarts: how often one worker may be started again.
    """

    workers: int = 2
    executor: Executor = field(default_factory=Plain)
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    folder: str | None = None
    max_message_bytes: int = DEFAULT_MAX_BYTES
    max_restarts: int = 3
    relays: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("memory_bytes", 0), ("max_message_bytes", 1), ("max_restarts", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"Processes({name}={value}): must be at least {least}, got {value}. Raise it.")
        if isinstance(self.executor, Resident):
            raise CompositionError(
                f"Processes(executor={self.executor!r}): its workers are processes already and open no executor, "
                "got one that is opened for a run. Use Plain()."
            )

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
            ProtocolError: a worker does not start, dies too often, or meets an error that no program catches.
        """
        clock: Any = entries["clock"] if entries is not None else {"now": 0.0}
        began = time.monotonic() - clock["now"]
        plan = WorkerPlan(programs, self.executor, self.memory_bytes // self.workers, self.folder, began)
        crew = Crew(self.workers, plan, max_bytes=self.max_message_bytes, max_restarts=self.max_restarts)
        with closing(crew):
            crew.start()
            world = _World(programs, self.executor, crew, began, (self.memory_bytes, self.folder))
            if entries is None:
                world.start()
            else:
                world.restore(entries)
            reason = world.run(observer, math.inf if until is None else until)
            observer.ended(world, reason)
            return world.states(), reason


class _World:
    def __init__(
        self,
        programs: Mapping[NodeId, Program],
        executor: Executor,
        crew: Crew,
        began: float,
        memory: tuple[int, str | None],
    ) -> None:
        self.now, self.traffic = 0.0, Traffic()
        self.nodes: dict[NodeId, Kept] = {}  # the server's state; the clients' as they were when last looked at
        self._programs, self._executor, self._crew, self._began = programs, executor, crew, began
        self._spool, replies = halves(*memory)
        self._number = 0
        self._inbox: deque[Parcel] = deque()  # for the server
        self._records: deque[Record] = deque()  # from clients
        self._timers: list[Parcel] = []
        self._outgoing: list[Parcel] = []  # what a step has sent; it leaves once the step is recorded and saved
        self._held: list[Parcel] = []  # what workers had not handled when last looked at
        self._is_fresh = True  # nothing has moved since
        self._changed: set[NodeId] = set()
        self._saved: set[int] = set()
        self._halted = ""
        self._stop = ""  # what the observer says
        programs[SERVER].attach(replies)

    def start(self) -> None:
        """The server wakes first; a client exists from its first message on."""
        self._inbox.append(self._parcel(SERVER, SERVER, Wake()))

    def state(self, node: NodeId) -> Any:
        if node != SERVER:
            self._look()
        return self.nodes[node].tree if node in self.nodes else None

    def states(self) -> Mapping[NodeId, Any]:
        """The states of all nodes, as of now."""
        self._look()
        return Opened(self.nodes)

    # Time

    def run(self, observer: Observer, until: float) -> str:
        while not (self._halted or self._stop):
            self._flush()
            if self._records:
                self._observe([self._records.popleft()], observer)
                continue
            if self._inbox:
                self._handle(self._inbox.popleft(), observer)
                continue
            clock = time.monotonic() - self._began
            if clock >= until:
                self.now = until
                return "time is up"
            if self._timers and self._timers[0].time <= clock:
                self._deliver(heapq.heappop(self._timers))
                continue
            due = min(until, self._timers[0].time if self._timers else math.inf)
            if due == math.inf and self._crew.is_idle():
                return "nothing left to do"
            self._pump(None if due == math.inf else due - clock)
        return self._stop or self._halted

    def _handle(self, parcel: Parcel, observer: Observer) -> None:
        """One step of the server."""
        assert parcel.body is not None
        self.now = max(self.now, time.monotonic() - self._began)
        body = parcel.body.take()
        self._stop = observer.heard(self.now, parcel.src, tag_of(body)) or ""
        if self._stop:
            self._inbox.appendleft(parcel.stamped(Kept(body)))
            return
        program, node = self._programs[SERVER], SERVER
        state = self.nodes.pop(node).take() if node in self.nodes else program.init(node)
        state, effects = program.step(state, Message(self.now, node, parcel.src, body))
        self.nodes[node] = self._spool.keep(state, 0)
        self._changed.add(node)
        self._observe([r for effect in effects for r in self._apply(effect)], observer)

    def _observe(self, records: list[Record], observer: Observer) -> None:
        for record in records:
            self._stop = observer.record(record, self) or self._stop
        if records and self._programs[SERVER].is_settled():
            observer.settled(self)

    def _apply(self, effect: Effect) -> list[Record]:
        match effect:
            case Send(to, body, after) if after != math.inf:
                if to != SERVER:
                    self.traffic.count_(to, downlink=encoded_size(body))
                self._outgoing.append(self._parcel(SERVER, to, body, after))
            case Work(job, _):
                (result,) = self._executor.run([job])
                self._outgoing.append(self._parcel(SERVER, SERVER, told(result, job.seed)))
            case Record():
                return [effect]
            case Halt(reason):
                self._halted = reason
        return []

    # Messages

    def _parcel(self, src: NodeId, to: NodeId, body: Any, after: float = 0.0, number: int = -1) -> Parcel:
        if number < 0:
            number, self._number = self._number, self._number + 1
        return Parcel(self.now + after, False, max(src, to), number, src, to).stamped(self._spool.keep(body))

    def _flush(self) -> None:
        """Let go what the last step has sent."""
        outgoing, self._outgoing = self._outgoing, []
        for parcel in outgoing:
            if parcel.time > self.now:
                heapq.heappush(self._timers, parcel)
            else:
                self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> None:
        if parcel.to == SERVER:
            self._inbox.append(parcel)
        else:
            self._is_fresh = False
            self._crew.send(parcel, self.nodes.get(parcel.to))

    def _pump(self, timeout: float | None) -> None:
        """Move what can be moved, for so long at most; take what came."""
        self._is_fresh = False
        for hand, frame in self._crew.pump(timeout):
            self._receive(hand, frame)
        self._bury()

    def _receive(self, hand: Hand, frame: Frame) -> None:
        match frame.kind:
            case Kind.MESSAGE:
                self._message(hand, frame)
            case Kind.RECORD:
                self._records.append(Record(*decode(frame.body)))
            case Kind.HALT:
                self._halted = str(decode(frame.body))
            case Kind.NODE:
                self._learn(frame.src, owned(decode(frame.body, max_bytes=_NO_LIMIT)))
            case Kind.HELD:
                body = owned(decode(frame.body, max_bytes=_NO_LIMIT))
                self._held.append(self._parcel(frame.src, frame.to, body, number=frame.number))
            case _:
                hand.condemn(f"sent a frame that is not its to send ({frame.kind.name})")

    def _learn(self, client: NodeId, state: Any) -> None:
        """A client's state, as of now."""
        if self._programs[client].is_blank(state):
            self.nodes.pop(client, None)
        else:
            self.nodes[client] = self._spool.keep(state)
            self._changed.add(client)

    def _message(self, hand: Hand, frame: Frame) -> None:
        src, to, size, fault = frame.src, frame.to, len(frame.body), frame.fault
        body: Any = None
        if src == SERVER or not hand.hosts(src):
            hand.condemn(f"sent a message of node {src}, which it does not host")
            return
        if not fault:
            try:
                body = owned(decode(frame.body, max_bytes=self._crew.max_bytes))
            except ProtocolError as error:
                fault = str(error)
        if fault:
            body, to = Failed("message", f"client {src} sent what cannot be read: {fault}"), SERVER
        if to == SERVER:
            self.traffic.count_(src, uplink=size)
        elif to != src:
            self.traffic.count_(to, downlink=size)
        self.now = max(self.now, time.monotonic() - self._began)
        parcel = self._parcel(src, to, body, frame.after)
        if frame.after:
            heapq.heappush(self._timers, parcel)
        else:
            self._deliver(parcel)

    def _bury(self) -> None:
        """Tell the server of the clients whose worker has died; another takes its place."""
        for clients, reason in self._crew.replace_dead():
            self._inbox.extend(self._parcel(client, SERVER, Failed("worker", reason)) for client in clients)

    # Saving

    def _look(self) -> None:
        """Have the workers tell the clients' states, as of now."""
        if self._is_fresh:
            return
        self._held = []
        for hand, frame in self._crew.look():
            self._receive(hand, frame)
        self._bury()
        self._is_fresh = True

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        self._look()
        queue = [*self._inbox, *self._timers, *self._outgoing, *self._held, *self._crew.unsent()]
        numbers = {parcel.number for parcel in queue}
        unchanged = {f"node/{node}" for node in self.nodes if node not in self._changed}
        unchanged |= {f"message/{number}" for number in numbers & self._saved}
        self._changed.clear()
        self._saved = numbers
        return packed(clock_of(self.now, self._number, self.traffic, self._halted), queue, self.nodes), unchanged

    def _compute(self, parcel: Parcel) -> None:
        job = reworked(parcel, self._programs[parcel.to], self.nodes.get(parcel.to))
        if job is None:
            parcel.body = Kept(Wake())  # nobody waits for it any more
            return
        (result,) = self._executor.run([job])
        parcel.body = self._spool.keep(told(result, job.seed))

    def restore(self, entries: Mapping[str, object]) -> None:
        """Go on from what `entries` gave, by this runtime or by another."""
        clock, queue, self.nodes = unpacked(entries, self._spool)
        self.now, self._number, self.traffic = clock["now"], clock["number"], clock["traffic"]
        self._halted = clock["halted"]
        self._saved = {parcel.number for parcel in queue}
        for parcel in queue:
            if parcel.body is None:  # the simulator had not come to it
                self._compute(parcel)
            if isinstance(parcel.body and parcel.body.tree, Wake) and parcel.time > self.now:
                heapq.heappush(self._timers, parcel)
            else:
                self._deliver(parcel)

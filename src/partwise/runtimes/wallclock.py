"""The wall clock: the server in this process, and its clients wherever a transport reaches them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from partwise.core.codec import DEFAULT_MAX_BYTES, decode, encoded_size
from partwise.core.errors import ProtocolError
from partwise.core.plan import Executor, ran
from partwise.core.program import SERVER, Effect, Failed, Halt, Message, NodeId, Program, Record, Send, Wake, Work
from partwise.core.runtime import Observer, Traffic
from partwise.core.spool import Kept, halves, owned
from partwise.runtimes.host import NO_LIMIT
from partwise.runtimes.parcel import Opened, Parcel, Queue, clock_of, packed, reworked, tag_of, told, unpacked
from partwise.runtimes.transport import Body, Envelope, Kind, Transport, joined

__all__ = ["Limits", "WallClock"]


class Limits(NamedTuple):
    """What a client is allowed.

    Args:
        message_bytes: a longer message is refused.
        patience_seconds: an answer that takes longer is not waited for.
    """

    message_bytes: int = DEFAULT_MAX_BYTES
    patience_seconds: float = math.inf


class WallClock:
    """Runs the server's program in this process, and knows of its clients only by a transport: a `World`.

    Args:
        programs: one per node.
        executor: runs what the server itself has to compute.
        transport: moves the messages to and from clients.
        began: when the run began, by `time.monotonic`.
        memory: bound of what is kept in memory, and the folder for the rest.
        limits: how long a message from a client may be, and how long its answer is waited for.
        place: what hosts clients, as a lost task is told.
        run: what is saved as the run's name among hosts that keep states themselves; "" for none.
    """

    def __init__(
        self,
        programs: Mapping[NodeId, Program],
        executor: Executor,
        transport: Transport,
        began: float,
        *,
        memory: tuple[int, str | None],
        limits: Limits,
        place: str = "worker",
        run: str = "",
    ) -> None:
        self.now, self.traffic = 0.0, Traffic()
        self.nodes: dict[NodeId, Kept] = {}  # the server's state; the clients' as they were when last looked at
        self._programs, self._executor, self._transport, self._began = programs, executor, transport, began
        self._limits, self._place, self._run, self._version = limits, place, run, 0
        self._spool, replies = halves(*memory)
        self._number = 0
        self._inbox: deque[Parcel] = deque()  # for the server
        self._records: deque[Record] = deque()  # from clients
        self._timers = Queue()
        self._outgoing: list[Parcel] = []  # what a step has sent; it leaves once the step is recorded and saved
        self._held: list[Parcel] = []  # what workers had not handled when last looked at
        self._is_fresh = True  # nothing has moved since
        self._changed: set[NodeId] = set()
        self._saved: set[int] = set()
        self._halted = ""
        self._stop = ""  # what the observer says
        programs[SERVER].attach(replies)

    def whole_run(
        self, observer: Observer, until: float | None, entries: Mapping[str, object] | None
    ) -> tuple[Mapping[NodeId, Any], str]:
        """From the start, or from saved entries, to the end: what a `Runtime` gives."""
        if entries is None:
            self.start()
        else:
            self.restore(entries)
        reason = self.run(observer, math.inf if until is None else until)
        observer.ended(self, reason)
        return self.states(), reason

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
            if self._timers and self._timers.first.time <= clock:
                self._deliver(self._timers.pop())
                continue
            due = min(until, self._timers.first.time if self._timers else math.inf)
            if not self._pump(None if due == math.inf else due - clock):
                return "nothing left to do"
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
                (result,) = ran(self._executor, [job])
                self._outgoing.append(self._parcel(SERVER, SERVER, told(result, job.seed)))
            case Record(kind, fields):
                self._version = fields["version"] if kind == "commit" else self._version
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
                self._timers.push(parcel)
            else:
                self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> None:
        if parcel.to == SERVER:
            self._inbox.append(parcel)
        else:
            self._is_fresh = False
            self._transport.push([self._enveloped(parcel)])

    def _enveloped(self, parcel: Parcel) -> Envelope:
        assert parcel.body is not None
        return Envelope(
            Kind.MESSAGE,
            parcel.src,
            parcel.to,
            parcel.number,
            body=parcel.body,
            version=self._version,
            deadline=self.now + self._limits.patience_seconds,
            state=self.nodes.get(parcel.to),
        )

    def _pump(self, timeout: float | None) -> bool:
        """Move what can be moved, for so long at most; take what came. False if nothing can come any more."""
        if not self._transport.wait(timeout):
            return False
        self._is_fresh = False
        for envelope in self._transport.pull():
            self._receive(envelope)
        return True

    def _receive(self, envelope: Envelope) -> None:
        match envelope.kind:
            case Kind.MESSAGE:
                self._message(envelope)
            case Kind.RECORD:
                self._records.append(Record(*decode(joined(envelope.body))))
            case Kind.HALT:
                self._halted = str(decode(joined(envelope.body)))
            case Kind.NODE:
                self._learn(envelope.src, _opened(envelope.body))
            case Kind.HELD:
                parcel = self._parcel(envelope.src, envelope.to, None, number=envelope.number)
                body = envelope.body  # a `Kept` has not left this process
                kept = body if isinstance(body, Kept) else self._spool.keep(_opened(body))
                self._held.append(parcel.stamped(kept))
            case Kind.LOST:
                self._inbox.append(self._parcel(envelope.src, SERVER, Failed(self._place, envelope.fault)))
            case Kind.LOOKED:
                self._is_fresh = True

    def _learn(self, client: NodeId, state: Any) -> None:
        """A client's state, as of now."""
        if self._programs[client].is_blank(state):
            self.nodes.pop(client, None)
        else:
            self.nodes[client] = self._spool.keep(state)
            self._changed.add(client)

    def _message(self, envelope: Envelope) -> None:
        src, to, fault, encoded = envelope.src, envelope.to, envelope.fault, joined(envelope.body)
        size = len(encoded)
        body: Any = None
        if not fault:
            try:
                body = owned(decode(encoded, max_bytes=self._limits.message_bytes))
                self._programs[to].check(body)
            except ProtocolError as error:
                fault = str(error)
        if fault:
            body, to = Failed("message", f"client {src} sent what cannot be read: {fault}"), SERVER
        if to == SERVER:
            self.traffic.count_(src, uplink=size)
        elif to != src:
            self.traffic.count_(to, downlink=size)
        self.now = max(self.now, time.monotonic() - self._began)
        parcel = self._parcel(src, to, body, envelope.after)
        if envelope.after:
            self._timers.push(parcel)
        else:
            self._deliver(parcel)

    # Saving

    def _look(self) -> None:
        """Have it told how things stand with the clients, as of now."""
        if self._is_fresh:
            return
        self._held = []
        self._transport.push([Envelope(Kind.LOOK)])
        while not self._is_fresh:
            self._pump(None)

    def entries(self) -> tuple[Mapping[str, object], Collection[str]]:
        self._look()
        queue = [*self._inbox, *self._timers, *self._outgoing, *self._held]
        numbers = {parcel.number for parcel in queue}
        unchanged = {f"node/{node}" for node in self.nodes if node not in self._changed}
        unchanged |= {f"message/{number}" for number in numbers & self._saved}
        self._changed.clear()
        self._saved = numbers
        clock = clock_of(self.now, self._number, self.traffic, self._halted)
        clock.update({"run": self._run} if self._run else {})
        return packed(clock, queue, self.nodes), unchanged

    def _compute(self, parcel: Parcel) -> None:
        job = reworked(parcel, self._programs[parcel.to], self.nodes.get(parcel.to))
        if job is None:
            parcel.body = Kept(Wake())  # nobody waits for it any more
            return
        (result,) = ran(self._executor, [job])
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
                self._timers.push(parcel)
            else:
                self._deliver(parcel)


def _opened(body: Body) -> Any:
    """What a worker has encoded, which is trusted with its size."""
    return owned(decode(joined(body), max_bytes=NO_LIMIT))

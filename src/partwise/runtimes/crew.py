"""Worker processes seen from outside: what is on its way to them, what they send, and what becomes of them."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterator
from functools import partial

from partwise.core.errors import ProtocolError
from partwise.core.population import Client
from partwise.core.spool import Kept
from partwise.runtimes import child
from partwise.runtimes.parcel import Parcel
from partwise.runtimes.wire import Frame, Kind, Outbox, Part, Reader
from partwise.runtimes.worker import Worker, WorkerPlan

__all__ = ["Crew", "Hand"]

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Hand:
    """One worker.

    Args:
        number: which one.
        of: how many there are; it hosts the clients that leave `number` when divided by it.
        plan: what it runs.
        max_bytes: limit of a message from it.
    """

    def __init__(self, number: int, of: int, plan: WorkerPlan, max_bytes: int) -> None:
        self.number, self.of, self.max_bytes = number, of, max_bytes
        self.starts = 0
        self._plan = plan

    def start(self, closing: list[socket.socket]) -> None:
        """Fork the process, with everything that is known of the one before forgotten."""
        self.process, self.socket = child.start(self._serve, closing=closing)
        self.starts += 1
        self.reader, self.outbox = Reader(self.socket, self.max_bytes), Outbox(self.socket)
        self.unsent: dict[int, Parcel] = {}
        self.outstanding: set[Client] = set()  # clients who got a message since the worker had nothing to do
        self.is_ready = self.is_dead = self.is_looking = False
        self.fault = self.fatal = ""
        self._knows: set[Client] = set()
        self._sent, self._handled = 0, 0

    def _serve(self, up: socket.socket) -> None:
        Worker(up, self._plan).serve()

    def __str__(self) -> str:
        return f"Processes(workers={self.of}): worker {self.number}"

    def hosts(self, client: Client) -> bool:
        """Whether the client lives there."""
        return client >= 0 and client % self.of == self.number

    @property
    def is_idle(self) -> bool:
        return not self.outbox.has_more() and self._sent == self._handled

    def send(self, parcel: Parcel, state: Kept | None) -> None:
        """Put a message on its way, behind the client's state if the process does not know the client yet."""
        client = parcel.to
        if client not in self._knows and state is not None:
            self.outbox.put(Kind.NODE, lambda: list(state.encoded()), to=client)
        self._knows.add(client)
        self.outstanding.add(client)
        self.unsent[parcel.number] = parcel
        self._sent += 1
        parts = partial(self._parts, parcel.number)
        self.outbox.put(Kind.MESSAGE, parts, src=parcel.src, to=client, number=parcel.number)

    def _parts(self, number: int) -> list[Part]:
        parcel = self.unsent.pop(number)
        assert parcel.body is not None
        return list(parcel.body.encoded())

    def exchange(self, event: int) -> list[Frame]:
        """Send and receive what the socket is ready for: at most one frame."""
        try:
            if event & select.POLLOUT:
                self.outbox.flush(only_first=self.is_looking)
        except EOFError:
            self.outbox = Outbox(self.socket)  # what it sent before it died can still be read
        if not event & (select.POLLIN | _GONE):
            return []
        try:
            frame = self.reader.read()
        except EOFError:
            self.is_dead = True
            return []
        except ProtocolError as error:
            self.condemn(f"sent what is no frame: {error}")
            return []
        return [] if frame is None else self._sort(frame)

    def condemn(self, fault: str) -> None:
        """Have no more to do with a process that does not keep to the exchange."""
        self.is_dead, self.fault = True, fault

    def _sort(self, frame: Frame) -> list[Frame]:
        """The frame, unless it is about the process itself."""
        match frame.kind:
            case Kind.READY:
                self.is_ready = True
            case Kind.IDLE:
                self._handled = frame.number
                if self.is_idle:
                    self.outstanding.clear()
            case Kind.LOOKED:
                self.is_looking = False
            case Kind.FATAL:
                self.fatal = frame.body.decode(errors="replace")
            case _:
                return [frame]
        return []

    def end(self) -> None:
        """End the process."""
        child.end(self.process, self.socket)

    def why(self) -> str:
        """What became of a dead process."""
        return self.fault or child.how_it_ended(self.process)


class Crew:
    """All workers of a run.

    Args:
        workers: how many.
        plan: what they run.
        max_bytes: limit of a message from a client.
        max_restarts: how often each may be started again.
    """

    def __init__(self, workers: int, plan: WorkerPlan, *, max_bytes: int, max_restarts: int) -> None:
        self.max_bytes, self.max_restarts = max_bytes, max_restarts
        self._hands = [Hand(number, workers, plan, max_bytes) for number in range(workers)]
        self._started: list[Hand] = []

    def start(self) -> None:
        """Start all of them, and wait until they are there.

        Raises:
            ProtocolError: one does not start.
        """
        for hand in self._hands:
            self._start(hand)
        while not all(hand.is_ready for hand in self._hands):
            for _ in self.pump(None):
                pass
            self._refuse_dead()

    def _start(self, hand: Hand) -> None:
        hand.start([other.socket for other in self._started if other is not hand])
        if hand not in self._started:
            self._started.append(hand)

    def close(self) -> None:
        """End all of them."""
        while self._started:
            self._started.pop().end()

    def _refuse_dead(self) -> None:
        for hand in self._hands:
            if hand.is_dead:
                raise ProtocolError(f"{hand}: must start, got: {hand.fatal or hand.why()}. Look at what it is given.")

    def is_idle(self) -> bool:
        """Whether nothing is on its way and no worker has anything to do."""
        return all(hand.is_idle for hand in self._hands)

    def send(self, parcel: Parcel, state: Kept | None) -> None:
        """Put a message to a client on its way; state: what a client goes on from whose worker does not know it."""
        self._hands[parcel.to % len(self._hands)].send(parcel, state)

    def unsent(self) -> list[Parcel]:
        """The messages of which nothing has left this process."""
        return [parcel for hand in self._hands for parcel in hand.unsent.values()]

    def pump(self, timeout: float | None) -> Iterator[tuple[Hand, Frame]]:
        """Wait until something can be moved, move it, and give what came: at most one frame of each worker."""
        poller, hands = select.poll(), {}
        for hand in self._hands:
            if not hand.is_dead:
                more = hand.outbox.has_more(only_first=hand.is_looking)
                poller.register(hand.socket, select.POLLIN | (select.POLLOUT if more else 0))
                hands[hand.socket.fileno()] = hand
        for fd, event in poller.poll(None if timeout is None else math.ceil(max(0.0, timeout) * 1000)):
            for frame in hands[fd].exchange(event):
                yield hands[fd], frame

    def look(self) -> Iterator[tuple[Hand, Frame]]:
        """Have every worker tell how things stand with it; nothing else moves until all have."""
        for hand in self._hands:
            if not hand.is_dead:
                hand.is_looking = True
                hand.outbox.put_first(Kind.LOOK)
        while asked := [hand for hand in self._hands if hand.is_looking and not hand.is_dead]:
            poller, hands = select.poll(), {hand.socket.fileno(): hand for hand in asked}
            for hand in asked:
                more = hand.outbox.has_more(only_first=True)
                poller.register(hand.socket, select.POLLIN | (select.POLLOUT if more else 0))
            for fd, event in poller.poll():
                for frame in hands[fd].exchange(event):
                    yield hands[fd], frame

    def replace_dead(self) -> Iterator[tuple[list[Client], str]]:
        """Start dead workers again; the clients whose messages died with each, and what became of it.

        Raises:
            ProtocolError: a program's error ended it, or it has died too often.
        """
        for hand in self._hands:
            if not hand.is_dead:
                continue
            if hand.fatal:
                raise ProtocolError(f"{hand}: must get through its clients' steps, got: {hand.fatal}. Mend that.")
            why, clients = hand.why(), sorted(hand.outstanding)
            if hand.starts > self.max_restarts:
                raise ProtocolError(
                    f"{hand}: may be started again {self.max_restarts} times, {why} once more. "
                    "Find out what ends it, or raise max_restarts; the run can be resumed."
                )
            hand.end()
            self._start(hand)
            yield clients, f"worker {hand.number} {why}"

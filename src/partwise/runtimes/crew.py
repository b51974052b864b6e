"""Worker processes seen from outside: a transport over sockets, and what becomes of those who die."""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

from partwise.core.errors import ProtocolError
from partwise.core.population import Client
from partwise.runtimes import child
from partwise.runtimes.host import HostPlan
from partwise.runtimes.transport import Envelope, Kind, joined
from partwise.runtimes.wire import Outbox, Reader
from partwise.runtimes.worker import Worker

__all__ = ["Crew", "Hand"]

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_THEIRS = frozenset({Kind.MESSAGE, Kind.RECORD, Kind.HALT, Kind.NODE, Kind.HELD})  # what a worker may send of clients


class Hand:
    """One worker.

    Args:
        number: which one.
        of: how many there are; it hosts the clients that leave `number` when divided by it.
        plan: what it runs.
        max_bytes: limit of a message from it.
    """

    def __init__(self, number: int, of: int, plan: HostPlan, max_bytes: int) -> None:
        self.number, self.of, self.max_bytes = number, of, max_bytes
        self.starts = 0
        self._plan = plan

    def start(self, closing: list[socket.socket]) -> None:
        """Fork the process, with everything that is known of the one before forgotten."""
        self.process, self.socket = child.start(self._serve, closing=closing)
        self.starts += 1
        self.reader, self.outbox = Reader(self.socket, self.max_bytes), Outbox(self.socket)
        self.is_ready = self.is_dead = self.is_looking = False
        self.fault = self.fatal = ""
        self.knows: set[Client] = set()  # clients who got a message from this process
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

    def send(self, envelope: Envelope) -> None:
        """Put a message on its way, behind the client's state if the process does not know the client yet."""
        client = envelope.to
        if client not in self.knows and envelope.state is not None:
            self.outbox.put(Envelope(Kind.NODE, to=client, body=envelope.state))
        self.knows.add(client)
        self._sent += 1
        self.outbox.put(envelope)

    def unsent(self) -> list[Envelope]:
        """The messages of which nothing has left this process, as HELD."""
        return [envelope._replace(kind=Kind.HELD) for envelope in self.outbox.unsent()]

    def exchange(self, event: int) -> list[Envelope]:
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

    def _sort(self, frame: Envelope) -> list[Envelope]:
        """The frame, unless it is about the process itself."""
        match frame.kind:
            case Kind.READY:
                self.is_ready = True
            case Kind.IDLE:
                self._handled = frame.number
            case Kind.LOOKED:
                self.is_looking = False
            case Kind.FATAL:
                self.fatal = bytes(joined(frame.body)).decode(errors="replace")
            case Kind.MESSAGE if not self.hosts(frame.src):
                self.condemn(f"sent a message of node {frame.src}, which it does not host")
            case kind if kind not in _THEIRS:
                self.condemn(f"sent a frame that is not its to send ({kind.name})")
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
    """All workers of a run: a `Transport`.

    Args:
        workers: how many.
        plan: what they run.
        max_bytes: limit of a message from a client.
        max_restarts: how often each may be started again.
    """

    def __init__(self, workers: int, plan: HostPlan, *, max_bytes: int, max_restarts: int) -> None:
        self.max_restarts = max_restarts
        self._plan = plan
        self._hands = [Hand(number, workers, plan, max_bytes) for number in range(workers)]
        self._started: list[Hand] = []
        self._arrived: list[Envelope] = []
        self._is_looking = False

    def start(self) -> None:
        """Start all of them, and wait until they are there.

        Raises:
            ProtocolError: one does not start.
        """
        for hand in self._hands:
            self._start(hand)
        while not all(hand.is_ready for hand in self._hands):
            self._move(self._hands, None)
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

    # What the server's process calls

    def nodes(self) -> Collection[Client]:
        return [client for client in self._plan.programs if client >= 0]

    def push(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            if envelope.kind == Kind.LOOK:
                self._look()
            else:
                self._hands[envelope.to % len(self._hands)].send(envelope)

    def pull(self) -> list[Envelope]:
        """What has come; the loss of the clients whose worker has died, for which another takes its place.

        Raises:
            ProtocolError: a program's error ended it, or it has died too often.
        """
        arrived, self._arrived = self._arrived, []
        # Not before all that was told has been taken, since that may be pushed on to another client.
        if self._is_looking and not arrived and not any(hand.is_looking for hand in self._alive()):
            self._is_looking = False
            arrived += [envelope for hand in self._alive() for envelope in hand.unsent()]
            arrived.append(Envelope(Kind.LOOKED))
        return [*arrived, *self._replace_dead()]

    def wait(self, seconds: float | None, minimum: int = 1) -> bool:
        end = math.inf if seconds is None else time.monotonic() + seconds
        while len(self._arrived) < minimum:
            alive = self._alive()
            if len(alive) < len(self._hands):
                break  # the others are told of with the next pull
            if self._is_looking:  # nothing else moves until all have told
                alive = [hand for hand in alive if hand.is_looking]
                if not alive:
                    break
            elif seconds is None and all(hand.is_ready and hand.is_idle for hand in alive):
                return False
            left = end - time.monotonic()
            self._move(alive, None if seconds is None else max(0.0, left))
            if left <= 0:
                break
        return True

    def _alive(self) -> list[Hand]:
        return [hand for hand in self._hands if not hand.is_dead]

    def _move(self, hands: Sequence[Hand], seconds: float | None) -> None:
        """Wait until something can be moved, and move it: at most one envelope of each worker."""
        poller, by_fd = select.poll(), {hand.socket.fileno(): hand for hand in hands}
        for hand in hands:
            more = hand.outbox.has_more(only_first=hand.is_looking)
            poller.register(hand.socket, select.POLLIN | (select.POLLOUT if more else 0))
        for fd, event in poller.poll(None if seconds is None else math.ceil(seconds * 1000)):
            self._arrived += by_fd[fd].exchange(event)

    def _look(self) -> None:
        """Have every worker tell how things stand with it."""
        self._is_looking = True
        for hand in self._alive():
            hand.is_looking = True
            hand.outbox.put_first(Kind.LOOK)

    def _replace_dead(self) -> Iterator[Envelope]:
        """Start dead workers again; the loss of the clients that each knew: of what they were at, if at anything."""
        for hand in self._hands:
            if not hand.is_dead:
                continue
            if hand.fatal:
                raise ProtocolError(f"{hand}: must get through its clients' steps, got: {hand.fatal}. Mend that.")
            why, clients = hand.why(), sorted(hand.knows)
            if hand.starts > self.max_restarts:
                raise ProtocolError(
                    f"{hand}: may be started again {self.max_restarts} times, {why} once more. "
                    "Find out what ends it, or raise max_restarts; the run can be resumed."
                )
            hand.end()
            self._start(hand)
            for client in clients:
                yield Envelope(Kind.LOST, client, fault=f"worker {hand.number} {why}")

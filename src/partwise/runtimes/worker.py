"""The inside of a worker process: a host of clients, and the socket to the process that has the server."""

from __future__ import annotations

import select
import socket
import traceback

from partwise.runtimes.host import NO_LIMIT, Host, HostPlan
from partwise.runtimes.transport import Envelope, Kind
from partwise.runtimes.wire import Reader, send

__all__ = ["Worker"]

_READ_AHEAD = 16 << 20  # bytes of messages that a worker takes before it handles the first of them


class Worker:
    """Steps its clients' programs, one message after another, until the socket is closed.

    Args:
        up: the socket to the server's process.
        plan: what to run.
    """

    def __init__(self, up: socket.socket, plan: HostPlan) -> None:
        self._up = up
        self._reader = Reader(up, NO_LIMIT)
        self._host = Host(plan, self._send)
        self._told = 0
        self._is_asked = False  # LOOK came
        self._poll = select.poll()
        self._poll.register(up, select.POLLIN)

    def serve(self) -> None:
        """Work until the other side is gone; an error that no program catches is reported there first."""
        try:
            send(self._up, Envelope(Kind.READY))
            while True:
                self._turn()
        except (EOFError, ConnectionError):
            return
        except Exception as error:
            text = traceback.format_exception_only(error)[-1].strip()
            send(self._up, Envelope(Kind.FATAL, body=text[:10_000].encode(errors="replace")))
            raise

    def _turn(self) -> None:
        self._drain()
        if self._is_asked:
            self._host.run_jobs()
            self._answer()
        elif self._host.has_more:
            self._host.turn()
        else:
            if self._host.handled != self._told:
                self._told = self._host.handled
                send(self._up, Envelope(Kind.IDLE, number=self._host.handled))
            self._poll.poll()

    def _drain(self) -> None:
        """Take what has come, but not too much at once."""
        while self._host.inbox_bytes < _READ_AHEAD:
            envelope = self._reader.read()
            if envelope is None:
                return
            if envelope.kind == Kind.LOOK:
                self._is_asked = True
            else:
                self._host.take(envelope)

    def _answer(self) -> None:
        """Tell the state of every client that has changed, and what has not been handled.

        A step may leave jobs behind; they are run first, since a job cannot be sent.
        """
        if self._host.has_jobs:
            return
        self._is_asked = False
        for envelope in (*self._host.states(), *self._host.held()):
            send(self._up, envelope)
        send(self._up, Envelope(Kind.LOOKED, number=self._host.handled))

    def _send(self, envelope: Envelope) -> None:
        send(self._up, envelope)

"""Messages between processes: frames on a stream socket.

A frame is a head and a body. The head says where the body belongs; the body is an encoded message, which is opened
only by the codec. A body that is too long is passed over, so that the next frame is found.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from partwise.core.errors import ProtocolError
from partwise.runtimes.transport import Envelope, Kind, Part, parts_of

__all__ = ["Outbox", "Reader", "send"]

_MAGIC = b"PTWF"
_HEAD = struct.Struct("<4sBqqqdQ")
_CHUNK = 1 << 16
_MAX_PARTS = 512  # per system call; systems allow 1024
_WITHOUT_WAITING = getattr(socket, "MSG_DONTWAIT", 0)


def _views(parts: list[Part]) -> list[memoryview]:
    return [view for part in parts if len(view := memoryview(part).cast("B"))]


def _advance(views: list[memoryview], sent: int) -> None:
    while views and sent >= len(views[0]):
        sent -= len(views.pop(0))
    if sent:
        views[0] = views[0][sent:]


def send(to: socket.socket, envelope: Envelope) -> None:
    """Send one frame, waiting as long as that takes."""
    views = _framed(envelope)
    while views:
        _advance(views, to.sendmsg(views[:_MAX_PARTS]))


def _framed(envelope: Envelope) -> list[memoryview]:
    """The head and the body's parts."""
    parts = parts_of(envelope.body)
    length = sum(len(part) for part in parts)
    head = _HEAD.pack(_MAGIC, envelope.kind, envelope.src, envelope.to, envelope.number, envelope.after, length)
    return _views([head, *parts])


class Reader:
    """Frames from a socket, as they come.

    Args:
        source: the socket.
        max_bytes: limit of one body.
    """

    def __init__(self, source: socket.socket, max_bytes: int) -> None:
        self._source, self._max_bytes = source, max_bytes
        self._begin()

    def _begin(self) -> None:
        self._frame: Envelope | None = None
        self._buffer, self._filled = bytearray(_HEAD.size), 0
        self._left_out = 0

    def read(self) -> Envelope | None:
        """The next frame, or None if it is not all there yet.

        Raises:
            EOFError: the other side is gone.
            ProtocolError: what came is no frame; nothing after it can be read.
        """
        while True:
            if self._filled < len(self._buffer):
                got = self._receive(memoryview(self._buffer)[self._filled :])
                if got is None:
                    return None
                self._filled += got
            elif self._left_out:
                got = self._receive(memoryview(bytearray(min(self._left_out, _CHUNK))))
                if got is None:
                    return None
                self._left_out -= got
            elif self._frame is None:
                self._open()
            else:
                frame = self._frame._replace(body=self._buffer)
                self._begin()
                return frame

    def _receive(self, room: memoryview) -> int | None:
        try:
            got = self._source.recv_into(room, 0, _WITHOUT_WAITING)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError as error:
            raise EOFError(str(error)) from error
        if not got:
            raise EOFError("the other side closed the connection")
        return got

    def _open(self) -> None:
        magic, kind, src, to, number, after, length = _HEAD.unpack(self._buffer)
        if magic != _MAGIC or kind not in Kind.__members__.values():
            raise ProtocolError(
                f"Reader(): a frame must begin with {_MAGIC!r} and a known kind, got {magic!r}, {kind}."
            )
        fault = ""
        if length > self._max_bytes:
            fault = (
                f"a message may have {self._max_bytes} bytes, got one of {length}. "
                "Raise max_message_bytes if it is meant to."
            )
            self._left_out, length = length, 0
        self._frame = Envelope(Kind(kind), src, to, number, after, bytearray(), fault)
        self._buffer, self._filled = bytearray(length), 0


class Outbox:
    """Frames on their way to a socket that may not always take them."""

    def __init__(self, to: socket.socket) -> None:
        self._to = to
        self._queue: deque[Envelope] = deque()  # what is in them is encoded when their turn has come
        self._views: list[memoryview] = []
        self._first: Envelope | None = None

    def put(self, envelope: Envelope) -> None:
        """Add a frame at the end."""
        self._queue.append(envelope)

    def put_first(self, kind: Kind) -> None:
        """Add a frame without a body, which overtakes all that have not begun."""
        self._first = Envelope(kind)

    def has_more(self, *, only_first: bool = False) -> bool:
        """Whether there is something to send."""
        return bool(self._views or self._first or (self._queue and not only_first))

    def unsent(self) -> list[Envelope]:
        """The messages of which nothing was sent yet."""
        return [envelope for envelope in self._queue if envelope.kind == Kind.MESSAGE]

    def flush(self, *, only_first: bool = False) -> None:
        """Send what the socket takes without waiting. only_first: nothing that `put` added begins now.

        Raises:
            EOFError: the other side is gone.
        """
        while self._views or self.has_more(only_first=only_first):
            if not self._views:
                envelope, self._first = (self._first, None) if self._first else (self._queue.popleft(), None)
                self._views = _framed(envelope)
            try:
                _advance(self._views, self._to.sendmsg(self._views[:_MAX_PARTS], (), _WITHOUT_WAITING))
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError as error:
                raise EOFError(str(error)) from error

"""Frames on a socket: in pieces, too long, not at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from partwise.core.errors import ProtocolError
from partwise.core.spool import Kept
from partwise.runtimes.transport import Envelope, Kind
from partwise.runtimes.wire import _HEAD, Outbox, Reader, send


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def raw(kind: int, length: int, body: bytes = b"", magic: bytes = b"PTWF") -> bytes:
    return _HEAD.pack(magic, kind, 3, -1, 8, 0.5, length) + body


def test_frames_in_pieces_of_any_size(pair):
    left, right = pair
    reader = Reader(right, 100)
    data = raw(Kind.MESSAGE, 5, b"hello") + raw(Kind.READY, 0) + raw(Kind.NODE, 3, b"abc")
    for size in (1, 2, 7, 44, 45, 46, 200):
        got = []
        for at in range(0, len(data), size):
            left.sendall(data[at : at + size])
            while (frame := reader.read()) is not None:
                got.append(frame)
        assert got == [
            Envelope(Kind.MESSAGE, 3, -1, 8, 0.5, bytearray(b"hello")),
            Envelope(Kind.READY, 3, -1, 8, 0.5, bytearray()),
            Envelope(Kind.NODE, 3, -1, 8, 0.5, bytearray(b"abc")),
        ]
    assert reader.read() is None


def test_long_body_is_passed_over_and_the_next_frame_found(pair):
    left, right = pair
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    reader = Reader(right, 100)
    left.sendall(raw(Kind.MESSAGE, 101, bytes(101)) + raw(Kind.MESSAGE, 100, bytes(100)))
    first, second = reader.read(), reader.read()
    assert first is not None and second is not None  # noqa: PT018
    assert (first.src, first.body) == (3, bytearray())
    assert first.fault == "a message may have 100 bytes, got one of 101. Raise max_message_bytes if it is meant to."
    assert (len(second.body), second.fault) == (100, "")


@pytest.mark.parametrize("data", [raw(Kind.READY, 0, magic=b"HTTP"), raw(99, 0)])
def test_what_is_no_frame(pair, data):
    left, right = pair
    left.sendall(data)
    with pytest.raises(ProtocolError, match=r"^Reader\(\): a frame must begin with b'PTWF' and a known kind, got b'"):
        Reader(right, 100).read()


def test_end_of_the_other_side(pair):
    left, right = pair
    reader = Reader(right, 100)
    left.sendall(raw(Kind.MESSAGE, 50, b"only a part"))
    assert reader.read() is None
    left.close()
    with pytest.raises(EOFError, match="closed"):
        reader.read()
    outbox = Outbox(right)
    outbox.put(Envelope(Kind.MESSAGE, body=b"x"))
    with pytest.raises(EOFError):
        outbox.flush()


def kinds(reader: Reader) -> list[tuple[Kind, int]]:
    found = []
    while (frame := reader.read()) is not None:
        found.append((frame.kind, len(frame.body)))
    return found


def test_outbox_keeps_order_but_for_what_overtakes(pair):
    """A frame that is under way is finished; then comes what overtakes; the rest waits if it must."""
    left, right = pair
    big, reader, asked = 4 << 20, Reader(right, 1 << 30), []
    outbox = Outbox(left)

    class Body(Kept):
        def encoded(self) -> list[bytes]:
            asked.append(self.tree)
            return [b"", bytes(self.tree - 1), b"x"]

    for size in (big, 11, 12):
        outbox.put(Envelope(Kind.MESSAGE, number=size, body=Body(size)))
    outbox.flush()
    assert asked == [big]  # a body is made when its turn has come
    assert [envelope.number for envelope in outbox.unsent()] == [11, 12]
    outbox.put_first(Kind.LOOK)
    got: list[tuple[Kind, int]] = []
    while len(got) < 2:
        outbox.flush(only_first=True)
        got += kinds(reader)
    assert got == [(Kind.MESSAGE, big), (Kind.LOOK, 0)]
    assert not outbox.has_more(only_first=True)
    assert outbox.has_more()
    outbox.flush()
    assert kinds(reader) == [(Kind.MESSAGE, 11), (Kind.MESSAGE, 12)]
    assert not outbox.has_more()


def test_send_waits_until_all_is_gone(pair):
    left, right = pair
    send(left, Envelope(Kind.IDLE, number=17))
    send(left, Envelope(Kind.MESSAGE, 1, 2, after=1.5, body=[bytes(2), memoryview(b"abc")]))
    reader = Reader(right, 10)
    assert reader.read() == Envelope(Kind.IDLE, 0, 0, 17, 0.0, bytearray())
    assert reader.read() == Envelope(Kind.MESSAGE, 1, 2, 0, 1.5, bytearray(b"\0\0abc"))

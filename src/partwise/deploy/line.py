"""A line between two processes of one machine: whole messages over a Unix socket. Standard library only."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

__all__ = ["ask", "listen", "receive", "reply"]

_HEAD = struct.Struct("<4sQ")
_MAGIC = b"PTWL"
_CHUNK = 1 << 20


def ask(path: str | Path, body: bytes, *, timeout: float | None = None) -> bytes:
    """Send a message and wait for the answer.

    Raises:
        OSError: nobody answers there.
        ValueError: what came is no message.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        line.connect(str(path))
        reply(line, body)
        return receive(line, 1 << 62)


def listen(path: str | Path) -> socket.socket:
    """A socket that only this user, and whoever has been given its folder, can reach."""
    path = Path(path)
    path.unlink(missing_ok=True)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        line.bind(str(path))
    finally:
        os.umask(before)
    line.listen(4)
    return line


def reply(line: socket.socket, body: bytes) -> None:
    """Send one message."""
    line.sendall(_HEAD.pack(_MAGIC, len(body)))
    line.sendall(body)


def receive(line: socket.socket, max_bytes: int) -> bytes:
    """One message.

    Raises:
        EOFError: the other side is gone.
        ValueError: it is no message, or too long.
    """
    magic, length = _HEAD.unpack(_exactly(line, _HEAD.size))
    if magic != _MAGIC or length > max_bytes:
        raise ValueError(
            f"receive(): a message must begin with {_MAGIC!r} and have at most {max_bytes} bytes, got {magic!r}, "
            f"{length}. Use the same Partwise on both sides, or raise max_message_bytes."
        )
    return bytes(_exactly(line, length))


def _exactly(line: socket.socket, length: int) -> bytearray:
    buffer, filled = bytearray(), 0
    while filled < length:
        part = line.recv(min(_CHUNK, length - filled))
        if not part:
            raise EOFError("the other side closed the line")
        buffer += part
        filled += len(part)
    return buffer

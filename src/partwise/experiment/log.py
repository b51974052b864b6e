"""The log of a run: every message that its server handled, in order, twenty bytes each.

A file begins with eight bytes that name it and its format's version. A row is when the message was handled (float64),
who sent it (int32) and its tag (int64), little-endian; what these mean is said at `core.heard.Heard`.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from partwise.core.errors import CheckpointError
from partwise.core.files import to_disk
from partwise.core.heard import Heard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LOG", "Difference", "Log", "LogWriter", "difference", "read_log"]

LOG = "log.bin"
_HEAD = b"PWLOG\x00\x00\x01"
_ROW = struct.Struct("<diq")
_BUFFER = 1 << 20  # bytes that are kept back at most


class Log(Sequence[Heard]):
    """The rows of a log, read from its file as they are asked for.

    Args:
        path: the file.
        rows: as many as are looked at.
    """

    def __init__(self, path: Path, rows: NDArray[np.void]) -> None:
        self.path, self.rows = path, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Heard:  # type: ignore[override]  # a slice is nothing anybody wants
        return Heard(*self.rows[at].item())

    def __iter__(self) -> Iterator[Heard]:
        for start in range(0, len(self.rows), 1 << 12):
            yield from map(Heard._make, self.rows[start : start + (1 << 12)].tolist())

    def __repr__(self) -> str:
        return f"Log({str(self.path)!r}, {len(self):,} messages)"


def read_log(path: str | Path) -> Log:
    """The log in a file, or in a run's folder. A last row that was not written to its end is left out.

    Raises:
        CheckpointError: there is none, or it is something else.
    """
    import numpy as np

    file = Path(path) / LOG if Path(path).is_dir() else Path(path)
    kind = np.dtype([("now", "<f8"), ("src", "<i4"), ("tag", "<i8")])
    try:
        with file.open("rb") as handle:
            head = handle.read(len(_HEAD))
        _check(file, head)
        count = (file.stat().st_size - len(_HEAD)) // _ROW.size
        if count <= 0:
            return Log(file, np.empty(0, kind))
        return Log(file, np.memmap(file, kind, "r", len(_HEAD), (count,)))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: there must be a run's {LOG}, got none. Name a run's folder.") from error
    except OSError as error:
        raise CheckpointError(f"{file}: must be readable, got: {error.strerror}. Look at the disk.") from error


def _check(file: Path, head: bytes) -> None:
    if _HEAD.startswith(head):  # or less of it: whoever began the file was killed
        return
    if head[:5] != _HEAD[:5]:
        raise CheckpointError(f"{file}: must be a run's log, got a file that begins with {head!r}. Name another.")
    raise CheckpointError(
        f"{file}: must be a log of format version {_HEAD[-1]}, got {head[-1]}. "
        "Use the version of Partwise that wrote it."
    )


class Difference(NamedTuple):
    """Where two logs part.

    Args:
        at: number of the first message in which they differ, from 1.
        one: what the one has there; None where it is over.
        other: what the other has there.
    """

    at: int
    one: Heard | None
    other: Heard | None

    def __str__(self) -> str:
        one, other = ("nothing more" if row is None else str(row) for row in self[1:])
        return f"message {self.at:,}: {one}, and {other}"


def difference(one: Log, other: Log) -> Difference | None:
    """Where two logs part; None if they are the same."""
    at = _first_unlike(one, other)
    return None if at is None else Difference(at + 1, *(log[at] if at < len(log) else None for log in (one, other)))


def _first_unlike(one: Log, other: Log) -> int | None:
    import numpy as np

    for start in range(0, min(len(one), len(other)), 1 << 16):
        a, b = one.rows[start : start + (1 << 16)], other.rows[start : start + (1 << 16)]
        both = min(len(a), len(b))
        unlike = np.flatnonzero(a[:both] != b[:both])
        if len(unlike):
            return start + int(unlike[0])
    return None if len(one) == len(other) else min(len(one), len(other))


class LogWriter:
    """Appends to the log in a run's folder; what is added is in the file from the next `flush` on.

    Args:
        folder: the run's folder.

    Raises:
        CheckpointError: the file there is not a log. Any method raises it when the disk is full or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG
        self._buffer = bytearray()
        self._in_file = 0  # rows
        self._is_synced = True
        if self._path.exists():
            self._in_file = len(read_log(self._path))

    def __len__(self) -> int:
        return self._in_file + len(self._buffer) // _ROW.size

    def add(self, now: float, src: int, tag: int) -> None:
        """Append a message."""
        self._buffer += _ROW.pack(now, src, tag)
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def flush(self, *, durable: bool = False) -> None:
        """Write what was added; `durable` waits for the disk."""
        if not self._buffer and (self._is_synced or not durable):
            return
        try:
            self._write(durable)
        except OSError as error:
            raise self._cannot(error) from error
        self._in_file += len(self._buffer) // _ROW.size
        self._buffer.clear()

    def _write(self, durable: bool) -> None:
        is_there = self._path.exists()
        if self._in_file and not is_there:
            raise CheckpointError(
                f"{self._path}: must have the {self._in_file:,} messages that were written before, got no file: it was "
                "taken away while the run went on. Put it back and resume the run, or begin it again."
            )
        with self._path.open("r+b" if is_there else "wb") as file:
            if not self._in_file:
                file.write(_HEAD)
            file.seek(len(_HEAD) + self._in_file * _ROW.size)  # over a row that was not written to its end
            file.write(self._buffer)
            if durable:
                to_disk(file)
        self._is_synced = durable

    def _cannot(self, error: OSError) -> CheckpointError:
        what = "room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "a folder it may write to"
        return CheckpointError(
            f"{self._path}: needs {what}, got: {error.strerror}. What was written before is safe. "
            "Free some space, or make it writable, and resume the run."
        )

    def truncate(self, count: int) -> None:
        """Forget all but so many messages.

        Raises:
            CheckpointError: there are fewer.
        """
        if count > len(self):
            raise CheckpointError(
                f"{self._path}: must have the {count:,} messages of the checkpoint, got {len(self):,}. "
                "Restore the file from a copy, or begin the run again."
            )
        self._buffer.clear()
        self._in_file = min(count, self._in_file)
        try:
            if self._path.exists():
                os.truncate(self._path, len(_HEAD) + self._in_file * _ROW.size if self._in_file else 0)
        except OSError as error:
            raise self._cannot(error) from error

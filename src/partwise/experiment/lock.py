"""One writer per run: a lock that the operating system drops when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path

from partwise.core.errors import CheckpointError

__all__ = ["LOCK", "WriterLock", "identity_of", "writer_of"]

LOCK = "writer.lock"
# Record locks belong to a process: it does not see its own, and loses them when it closes any handle on the file.
# They are used because a forked worker that outlives its parent does not inherit them.
_Identity = tuple[int, int]  # device and inode: one folder may have several names, by links and by `..`
_HELD: set[_Identity] = set()
_AT_A_TIME = threading.Lock()  # no thread opens a lock's file while another one takes it


def writer_of(folder: Path) -> int | None:
    """The process that writes the run in a folder; None if nobody does."""
    path = Path(folder) / LOCK
    with _AT_A_TIME:
        if identity_of(path) in _HELD:
            return os.getpid()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _pid(handle)
        finally:
            os.close(handle)
    return None


class WriterLock:
    """The right to write a run.

    Args:
        folder: the run's folder; made if it is missing.

    Raises:
        CheckpointError: another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = (folder / LOCK).absolute()
        me = f"RunStore({str(folder)!r})"
        with _AT_A_TIME:
            if identity_of(self._path) in _HELD:
                raise CheckpointError(f"{me}: one writer at a time, got a second one in this process. Close the first.")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._handle = self._taken(me)
            except OSError as error:
                raise CheckpointError(
                    f"{me}: needs a folder that it may write to and lock, got: {error.strerror}. Name another."
                ) from error
            found = os.fstat(self._handle)
            self._identity = found.st_dev, found.st_ino
            _HELD.add(self._identity)

    def _taken(self, me: str) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it may have removed the file between the two calls: then the lock is on no file.
                is_there = self._path.exists() and os.fstat(handle).st_ino == self._path.stat().st_ino
            except OSError as error:
                pid = _pid(handle)
                os.close(handle)
                if error.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
                raise CheckpointError(
                    f"{me}: another process is writing this run: pid {pid}. Wait for it, or end it."
                ) from error
            if is_there:
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
                return handle
            os.close(handle)

    def release(self) -> None:
        """Let others write."""
        with _AT_A_TIME:
            if identity_of(self._path) == self._identity:  # or the folder was moved, and another's may be in its place
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._handle)
            _HELD.discard(self._identity)


def identity_of(path: Path) -> _Identity | None:
    """Which file a path leads to; None if to none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _pid(handle: int) -> int | None:
    text = os.pread(handle, 20, 0)
    return int(text) if text.isdigit() else None

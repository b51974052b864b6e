"""Files that are written whole or not at all, and are on the disk then."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["FULL", "placed", "sync_folder", "to_disk", "write_file"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what a system says where a file finds no more room


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def placed(temporary: Path, path: Path) -> Iterator[None]:
    """Put a file in its place once the block that writes it has ended; it goes if that raises."""
    try:
        yield
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with placed(temporary, path), temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        to_disk(file)


def to_disk(file: BinaryIO) -> None:
    """Wait until the disk has what was written."""
    file.flush()
    os.fsync(file.fileno())

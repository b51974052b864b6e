"""Where prepared data are kept between runs, and files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from partwise.core.errors import DataError
from partwise.core.files import placed, to_disk

__all__ = ["cache_dir", "whole_file"]


def cache_dir() -> Path:
    """The user's cache folder for Partwise: $XDG_CACHE_HOME/partwise where that is set. Not created.

    Raises:
        DataError: it is not set, and the user has no home, as in a container that runs as a number without a name.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    if root:
        return Path(root) / "partwise"
    try:
        return _in_home()
    except RuntimeError as error:
        raise DataError(
            "cache_dir(): needs a folder for what is kept between runs, got a user without a home. "
            "Set XDG_CACHE_HOME, or HOME."
        ) from error


def _in_home() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "partwise" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "partwise"
    return Path.home() / ".cache" / "partwise"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under `path` only when the block ends without an error.

    Raises:
        OSError: the folder cannot be written or the disk is full; then `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with placed(Path(name), path), os.fdopen(handle, "wb") as file:
        yield file
        to_disk(file)

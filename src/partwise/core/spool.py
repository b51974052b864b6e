"""Trees in memory up to a bound, and beyond it in a temporary file, through the codec."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
from torch import Tensor

from partwise.core.codec import decode, encode_parts, register
from partwise.core.errors import CheckpointError
from partwise.core.files import FULL
from partwise.core.sizes import is_frozen

__all__ = ["DEFAULT_MEMORY_BYTES", "Kept", "Spool", "footprint", "halves", "owned"]

DEFAULT_MEMORY_BYTES = 128 << 20
_ALWAYS_IN_MEMORY = 4096  # bytes; a smaller tree is not worth the trip
_PAGE = 4096
_NO_LIMIT = 1 << 62
_KNOWN = "_footprint"
_SCALARS = frozenset({int, float, bool, type(None)})


def footprint(tree: Any) -> int:
    """Bytes of the tensors, arrays and bytes in a tree; a few for each thing that holds them."""
    kind: type = type(tree)  # asked for with every message: what is met most comes first
    if kind in _SCALARS:
        return 8
    if kind is Tensor:
        return int(tree.nbytes)
    if kind is dict:
        return _footprints(tree.values())
    if kind is tuple or kind is list:
        return _footprints(tree)
    if kind is str or kind is bytes:
        return len(tree)
    if kind is Kept:
        return 0  # counted by its spool
    if isinstance(tree, Tensor | np.ndarray):
        return int(tree.nbytes)
    if isinstance(tree, list | tuple):
        return _footprints(tree)
    if isinstance(tree, Mapping):
        return _footprints(tree.values())
    names, stays = _made_of(kind)
    if not stays:
        return 8 if names is None else _footprints([getattr(tree, name) for name in names])
    found: int | None = tree.__dict__.get(_KNOWN)  # of an index, say, that many clients have, and some for long
    if found is None:
        found = tree.__dict__[_KNOWN] = _footprints([getattr(tree, name) for name in names or ()])
    return found


def _footprints(trees: Iterable[Any]) -> int:
    """That of a thing that holds these."""
    total = 64
    for tree in trees:
        total += 8 if type(tree) in _SCALARS else footprint(tree)
    return total


@lru_cache(4096)
def _made_of(kind: type) -> tuple[tuple[str, ...] | None, bool]:
    """What a dataclass is made of, and whether it stays as it is: found once per class, for a run asks all the time."""
    if not dataclasses.is_dataclass(kind):
        return None, False
    return tuple(f.name for f in dataclasses.fields(kind) if f.init), is_frozen(kind)


def owned(tree: Any) -> Any:
    """A decoded tree with its tensors in memory of their own, aligned as torch aligns them.

    Some kernels (a matrix times one vector, a dot product) give other last bits on memory that is aligned otherwise,
    so that without this a tree would not compute the same after a trip through the codec. The tree is consumed.
    """
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, dict):
        for key, value in tree.items():
            tree[key] = owned(value)
    elif isinstance(tree, list):
        tree[:] = [owned(x) for x in tree]
    elif isinstance(tree, tuple):
        items = [owned(x) for x in tree]
        return tuple(items) if type(tree) is tuple else type(tree)(*items)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            if field.init:
                object.__setattr__(tree, field.name, owned(getattr(tree, field.name)))
    return tree


@register
@dataclass(eq=False)
class Kept:
    """A tree that may lie in a spool's file; `tree` reads it from there each time.

    In a tree that is encoded it stands for what it keeps.

    Args:
        tree: what is kept.
    """

    tree: Any

    def __getattr__(self, name: str) -> Any:
        """`tree`, for one that is not in memory."""
        if name != "tree":
            raise AttributeError(name)
        spool, place = self.__dict__["_spool"], self.__dict__["_place"]
        return owned(decode(spool.read(*place), max_bytes=_NO_LIMIT))

    def __repr__(self) -> str:
        return "Kept(in a file)" if self.is_in_file else f"Kept({self.tree!r})"

    @property
    def is_in_file(self) -> bool:
        return "tree" not in self.__dict__

    def encoded(self) -> list[bytes | memoryview]:
        """The encoded tree, in parts, as `encode_parts` gives it."""
        if self.is_in_file:
            return [self.__dict__["_spool"].read(*self.__dict__["_place"])]
        return encode_parts(self.tree)

    def take(self) -> Any:
        """The tree, and an end to keeping it."""
        tree = self.tree
        self._forget()
        return tree

    def _forget(self) -> None:
        spool = self.__dict__.pop("_spool", None)
        if spool is not None:
            spool.forget(self.__dict__.pop("_size"), self.__dict__.pop("_place"))
        self.__dict__["tree"] = None

    def __del__(self) -> None:
        self._forget()


class Spool:
    """Keeps trees in memory up to a bound, and beyond it in one temporary file.

    The file has no name: it goes with the process, however that ends.

    Args:
        max_bytes: bound of what is kept in memory, >= 0.
        folder: where the file is; the system's folder for temporary files by default, which must not be a RAM disk.

    Example:
        >>> import torch
        >>> spool = Spool(max_bytes=0)
        >>> kept = spool.keep({"w": torch.arange(2000.0)})
        >>> kept.is_in_file, spool.bytes_in_file > 8000
        (True, True)
        >>> kept.take()["w"].sum(), spool.bytes_in_file
        (tensor(1999000.), 0)
    """

    def __init__(self, max_bytes: int = DEFAULT_MEMORY_BYTES, folder: str | None = None) -> None:
        self.max_bytes, self.folder = max_bytes, folder
        self.bytes_in_memory, self.bytes_in_file = 0, 0
        self._file: IO[bytes] | None = None
        self._end = 0
        self._gaps: list[tuple[int, int]] = []  # (offset, length), ascending, never adjacent

    def keep(self, tree: Any, size: int | None = None) -> Kept:
        """Keep a tree, which is no longer the caller's.

        Args:
            tree: as the codec takes it.
            size: its bytes, where the caller knows them.

        Raises:
            CheckpointError: the file cannot be written.
        """
        size = footprint(tree) if size is None else size
        kept = Kept(tree)
        place = None
        if size > _ALWAYS_IN_MEMORY and self.bytes_in_memory + size > self.max_bytes:
            place = self._write(encode_parts(tree, checksummed=False))
            del kept.__dict__["tree"]
            self.bytes_in_file += place[1]
        else:
            self.bytes_in_memory += size
        kept.__dict__.update(_spool=self, _size=size, _place=place)
        return kept

    def forget(self, size: int, place: tuple[int, int] | None) -> None:
        """Make room; called by what was kept."""
        if place is None:
            self.bytes_in_memory -= size
        else:
            self.bytes_in_file -= place[1]
            self._release(*place)

    def read(self, offset: int, length: int) -> bytearray:
        """The encoded bytes at a place of the file."""
        assert self._file is not None
        buffer = bytearray(length)
        self._file.seek(offset)
        self._file.readinto(buffer)  # type: ignore[attr-defined]  # typeshed's IO lacks it
        return buffer

    def _write(self, parts: list[bytes | memoryview]) -> tuple[int, int]:
        length = sum(len(part) for part in parts)
        offset = self._reserve(length)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - it lives as long as the spool
            self._file.seek(offset)
            for part in parts:
                self._file.write(part)
            self._file.flush()
        except OSError as error:
            where = self.folder or tempfile.tempdir  # None where the system has no folder that can be written
            what = "room on the disk" if error.errno in FULL else "a folder it can write to"
            raise CheckpointError(
                f"Spool(folder={where!r}): needs {what} for {length} bytes, got: {error.strerror}. "
                "Free some, name another folder, or allow the runtime more memory_bytes."
            ) from error
        return offset, length

    def _reserve(self, length: int) -> int:
        """The first gap that is long enough, else the end."""
        need = _pages(length)
        for i, (offset, room) in enumerate(self._gaps):
            if room >= need:
                self._gaps[i : i + 1] = [(offset + need, room - need)] if room > need else []
                return offset
        self._end += need
        return self._end - need

    def _release(self, offset: int, length: int) -> None:
        start, stop = offset, offset + _pages(length)
        at = bisect.bisect(self._gaps, (offset, 0))
        if at < len(self._gaps) and self._gaps[at][0] == stop:
            stop += self._gaps.pop(at)[1]
        if at and sum(self._gaps[at - 1]) == start:
            at -= 1
            start = self._gaps.pop(at)[0]
        if stop == self._end:
            self._end = start
            if self._file is not None and not self._file.closed:
                with contextlib.suppress(OSError):  # as in `close`
                    self._file.truncate(start)
        else:
            self._gaps.insert(at, (start, stop - start))

    def close(self) -> None:
        """Give the file up, and all that is in it."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # it is flushed, which on a full disk fails once more
                self._file.close()

    def __del__(self) -> None:
        self.close()


def halves(max_bytes: int, folder: str | None = None) -> tuple[Spool, Spool]:
    """Two spools with half of the memory each: what stays for long in one leaves what comes and goes its room."""
    return Spool(max_bytes // 2, folder), Spool(max_bytes // 2, folder)


def _pages(length: int) -> int:
    return -(-length // _PAGE) * _PAGE

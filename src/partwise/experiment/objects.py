"""Content-addressed files under a checkpoint: safetensors files and packs of small entries.

A file is named by the BLAKE2b digest of its bytes, written under another name, flushed to the disk and renamed. So a
file that has its name is whole, whatever happened while it was written.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from partwise.core.blocks import BY_SAFETENSORS, Block, plain_block, read_tensor, view
from partwise.core.codec import join, split
from partwise.core.errors import CheckpointError
from partwise.core.files import to_disk, write_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pack", "Place", "fault_of", "read_slice", "read_tree", "write_tree"]

_DIGEST_BYTES = 20
_SKELETON = "partwise"  # the metadata key under which a safetensors file carries what is not a tensor
_CHUNK = 1 << 20


class Place(NamedTuple):
    """Where an entry is: a file and, in a pack, its bytes; length 0 for a safetensors file of its own."""

    file: str
    offset: int = 0
    length: int = 0


@dataclass(eq=False)
class Pack:
    """A file of many small entries, being written.

    Args:
        folder: where it will be.
    """

    folder: Path
    length: int = 0
    entries: dict[str, tuple[int, int]] = field(default_factory=dict)  # key -> offset and length
    _digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
    _file: BinaryIO | None = None

    def add(self, key: str, parts: Iterable[bytes | memoryview]) -> None:
        """Append an entry."""
        if self._file is None:
            self._file = self._path().open("wb", buffering=_CHUNK)
        offset = self.length
        for part in parts:
            self._digest.update(part)
            self._file.write(part)
            self.length += len(part)
        self.entries[key] = offset, self.length - offset

    def close(self) -> str | None:
        """Put the file in its place; its name, None if nothing was added."""
        if self._file is None:
            return None
        to_disk(self._file)
        self._file.close()
        name = f"{self._digest.hexdigest()}.pack"
        self._path().replace(self.folder / name)
        return name

    def discard(self) -> None:
        """Remove what was written so far."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()  # flushes, which on a full disk fails once more
            with contextlib.suppress(OSError):
                self._path().unlink(missing_ok=True)

    def _path(self) -> Path:
        return self.folder / ".pack.tmp"


def write_tree(folder: Path, tree: object) -> tuple[str, int]:
    """Write a tree as a safetensors file that any reader of the format opens; its name and length."""
    skeleton, tensors = split(tree)
    # Wider elements first, so that every tensor is aligned, as the format's own library does.
    ordered = sorted(((plain_block(t), n) for n, t in tensors.items()), key=lambda b: (-b[0].dtype.itemsize, b[1]))
    table: dict[str, object] = {"__metadata__": {_SKELETON: base64.b64encode(skeleton).decode("ascii")}}
    end = 0
    for block, name in ordered:
        where = [end, end + block.length]
        table[name] = {"dtype": block.dtype.safetensors, "shape": block.shape, "data_offsets": where}
        end += block.length
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    parts: list[bytes | memoryview] = [
        len(header).to_bytes(8, "little"),
        header,
        *(view(block) for block, _ in ordered),
    ]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    name = f"{digest.hexdigest()}.safetensors"
    # Even if a file of this name is there: it may be the damaged one that made the run go back.
    write_file(folder / name, parts)
    return name, 8 + len(header) + end


def read_tree(path: Path) -> object:
    """Read what `write_tree` wrote; tensors are views on one buffer.

    Raises:
        CheckpointError: the file is not one that `write_tree` wrote.
        ProtocolError: its tree names a class that is not registered.
    """
    data = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(data)
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        table = json.loads(bytes(data[8:start]))
        skeleton = base64.b64decode(table.pop("__metadata__")[_SKELETON], validate=True)
        tensors = {name: _tensor(entry, memoryview(data)[start:]) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise CheckpointError(
            f"{path}: must be a safetensors file that Partwise wrote, got another ({error!r}). Restore it from a copy."
        ) from error
    return join(skeleton, tensors)


def _tensor(entry: Mapping[str, object], data: memoryview) -> Tensor:
    dtype, shape, offsets = BY_SAFETENSORS[str(entry["dtype"])], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("shape and data_offsets are lists")
    begin, end = offsets
    block = Block(dtype, tuple(shape), end - begin)
    if block.decoded_bytes != block.length or not 0 <= begin <= end <= len(data):
        raise ValueError("a tensor's bytes do not fit its shape")
    return read_tensor(block, data[begin:end])


def fault_of(path: Path, length: int) -> str | None:
    """What is wrong with a content-addressed file; None if it is whole."""
    try:
        found = path.stat().st_size
        digest = _digest_of(path) if found == length else ""
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found != length:
        return f"has {found} of {length} bytes" if found < length else f"has {found} bytes instead of {length}"
    return None if digest == path.stem else "does not have the digest it is named by"


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_slice(path: Path, offset: int, length: int) -> memoryview:
    """Bytes of a pack."""
    data = bytearray(length)
    with path.open("rb") as file:
        file.seek(offset)
        file.readinto(data)
    return memoryview(data)

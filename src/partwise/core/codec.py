"""Trees to bytes and back, without loss: one codec for messages, checkpoints and the event log.

A tree is made of None, bool, int, float, str, bytes, list, tuple, dict, frozenset of int, tensors, NumPy arrays
and scalars, and instances of registered classes. Nothing in a message is ever executed: a class is named, and
must have been registered here.

A message is a prefix, a header and blocks::

    prefix   magic, format version, flags, header length, total length, payload checksum, crc32 of prefix and header
    header   msgpack scalars one after another: class table, block table, then the tree in prefix order
    blocks   one per tensor, each beginning at a multiple of 8 bytes, in the order of the table

A block's place follows from the lengths before it, so blocks can neither overlap nor leave the message.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from partwise.core.blocks import Block, checksum, view
from partwise.core.sizes import UncommonError, header_and_blocks
from partwise.core.tree import Reader, Tree, Writer, fail, register, tokens_of

__all__ = [
    "DEFAULT_MAX_BYTES",
    "FORMAT_VERSION",
    "PREFIX_BYTES",
    "Lengths",
    "decode",
    "encode",
    "encode_parts",
    "encoded_lengths",
    "encoded_size",
    "join",
    "message_length",
    "register",
    "split",
]

FORMAT_VERSION = 1
DEFAULT_MAX_BYTES = 1 << 32
_MAGIC = b"PTWS"
_PREFIX = struct.Struct("<4sHHIQII")
PREFIX_BYTES = _PREFIX.size
_CRC_AT = PREFIX_BYTES - 4
_HAS_CHECKSUM = 1


def _padding(length: int) -> int:
    return -length % 8


def encode_parts(tree: Tree, *, checksummed: bool = True) -> list[bytes | memoryview]:
    """Encode a tree without joining it, for `writev`.

    Blocks of floats are views: the tensors may change only after the parts are sent.

    Args:
        tree: what to encode.
        checksummed: guard the blocks by a checksum, at the speed of reading them once.

    Raises:
        TypeError: something in the tree has no encoding; the message says where.
        ValueError: the tree is more than 64 deep.
    """
    return _parts(_written(tree), checksummed)


def _written(tree: Tree, named: dict[str, Tensor] | None = None) -> Writer:
    writer = Writer(named)
    writer.add(tree)
    return writer


def _parts(writer: Writer, checksummed: bool) -> list[bytes | memoryview]:
    header, crc = writer.header(), 0
    end = PREFIX_BYTES + len(header)
    parts: list[bytes | memoryview] = []
    for block in writer.blocks:
        data = view(block)
        if checksummed:
            crc = checksum(data, crc)
        if _padding(end):
            parts.append(bytes(_padding(end)))
        end += _padding(end) + len(data)
        parts.append(data)
    flags = _HAS_CHECKSUM if checksummed else 0
    prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION, flags, len(header), end, crc, 0)[:_CRC_AT]
    crc = zlib.crc32(header, zlib.crc32(prefix))
    return [prefix + crc.to_bytes(4, "little") + header, *parts]


def encode(tree: Tree, *, checksummed: bool = True) -> bytes:
    """Encode a tree; the same tree gives the same bytes.

    Args and Raises: as `encode_parts`.

    Example:
        >>> import torch
        >>> tree = {"model": (torch.tensor([1.0, float("nan")]), 7), 3: None}
        >>> decode(encode(tree))
        {'model': (tensor([1., nan]), 7), 3: None}
    """
    return b"".join(encode_parts(tree, checksummed=checksummed))


class Lengths(NamedTuple):
    """What an encoded message consists of. head: bytes before the blocks. blocks: with the gaps between them."""

    head: int
    blocks: int

    def total(self, more: int = 0) -> int:
        """Bytes of the message, if its head had some more."""
        head = self.head + more
        return head + _padding(head) + self.blocks if self.blocks else head


def encoded_lengths(tree: Tree) -> Lengths:
    """What `encode(tree)` would consist of, without touching blocks of floats."""
    try:
        header, lengths = header_and_blocks(tree)
    except UncommonError:
        writer = _written(tree)
        header, lengths = len(writer.header()), [block.length for block in writer.blocks]
    end = 0
    for length in lengths:
        end += _padding(end) + length
    # A block without bytes begins where the next one would.
    return Lengths(PREFIX_BYTES + header + (_padding(PREFIX_BYTES + header) if lengths and not end else 0), end)


def encoded_size(tree: Tree) -> int:
    """`len(encode(tree))`, without touching blocks of floats."""
    return encoded_lengths(tree).total()


def split(tree: Tree) -> tuple[bytes, dict[str, Tensor]]:
    """Encode a tree but for its tensors, which come back by name, for a safetensors file.

    A name is the way to the tensor, joined by `/`. Tensors of a dtype that safetensors lacks stay in the bytes.
    """
    named: dict[str, Tensor] = {}
    return b"".join(_parts(_written(tree, named), checksummed=True)), named


# Decoding


def message_length(prefix: bytes | bytearray | memoryview, *, max_bytes: int = DEFAULT_MAX_BYTES) -> int:
    """How long the message is that begins with these `PREFIX_BYTES` bytes.

    Raises:
        ProtocolError: they do not begin a message of this format, or it is longer than `max_bytes`.
    """
    start = bytes(prefix[:PREFIX_BYTES])
    if not _MAGIC.startswith(start[:4]):
        raise fail(f"a message begins with {_MAGIC!r}, got {start[:4]!r}. Is this a Partwise message?")
    if len(start) < PREFIX_BYTES:
        raise fail(f"a message has at least {PREFIX_BYTES} bytes, got {len(start)}: it is truncated. Send it again.")
    _, version, flags, header_length, total, _, _ = _PREFIX.unpack(start)
    if version != FORMAT_VERSION:
        raise fail(
            f"message of format version {version}, this is {FORMAT_VERSION}: the sender runs another Partwise. "
            "Install the same version on both sides."
        )
    if flags & ~_HAS_CHECKSUM or total < PREFIX_BYTES + header_length:
        raise fail("a prefix must be consistent, got unknown flags or lengths. Send the message again.")
    if total > max_bytes:
        raise fail(f"a message may have {max_bytes} bytes, got one of {total}. Raise max_bytes if it is meant to.")
    return int(total)


def decode(data: bytes | bytearray | memoryview, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Tree:
    """Decode what `encode` made.

    Tensors and arrays are views on a writable buffer (a bytearray), which then belongs to them: they may be
    written to, they do not overlap, and any of them keeps the buffer alive. A read-only buffer is copied once.

    Args:
        data: one whole message.
        max_bytes: limit for the message, and for its tensors once unpacked.

    Raises:
        ProtocolError: the message is malformed, or names a class that is not registered here.
    """
    return _decoded(data, None, max_bytes)


def join(skeleton: bytes, tensors: Mapping[str, Tensor], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Tree:
    """Undo `split`. Raises ProtocolError as `decode` does, and for a tensor that is missing."""
    return _decoded(skeleton, tensors, max_bytes)


def _decoded(data: bytes | bytearray | memoryview, named: Mapping[str, Tensor] | None, max_bytes: int) -> Tree:
    buffer = memoryview(data).cast("B")
    total = message_length(buffer[:PREFIX_BYTES], max_bytes=max_bytes)
    if len(buffer) != total:
        how = "truncated" if len(buffer) < total else "longer than it says"
        raise fail(f"a message must have the {total} bytes it states, got {len(buffer)}: it is {how}. Send it again.")
    _, _, flags, header_length, _, payload_crc, header_crc = _PREFIX.unpack(buffer[:PREFIX_BYTES])
    end = PREFIX_BYTES + header_length
    header = buffer[PREFIX_BYTES:end]
    if zlib.crc32(header, zlib.crc32(buffer[:_CRC_AT])) != header_crc:
        raise fail("the header's checksum must match, got another: bytes changed on the way. Send it again.")
    reader = Reader(tokens_of(header), named)
    try:
        classes, blocks = reader.classes(), reader.block_table(max_bytes)
        reader.entries = classes
        reader.blocks = iter(_placed(blocks, buffer, end, payload_crc if flags & _HAS_CHECKSUM else None))
        tree = reader.build()
    except StopIteration:
        raise fail("a tree must be whole, got one that breaks off. Send it again.") from None
    if next(reader.tokens, reader) is not reader or next(reader.blocks, None) is not None:
        raise fail("a message holds one tree, got more behind it. Send it again.")
    return tree


def _placed(
    blocks: list[Block], buffer: memoryview, end: int, stated_crc: int | None
) -> list[tuple[Block, memoryview]]:
    """Each block with its bytes, once lengths, padding and checksum are right."""
    places, crc, start = [], 0, end
    for block in blocks:
        if any(buffer[end : end + _padding(end)]):
            raise fail("bytes between blocks must be zero, got others. Send it again.")
        end += _padding(end)
        places.append((block, end, end + block.length))
        end += block.length
    if end != len(buffer):
        raise fail(f"header and blocks must fill the message's {len(buffer)} bytes, got {end}. Send it again.")
    if stated_crc is not None:
        for _, begin, stop in places:
            crc = checksum(buffer[begin:stop], crc)
        if crc != stated_crc:
            raise fail("the blocks' checksum must match, got another: bytes changed on the way. Send it again.")
    if places and (buffer.readonly or np.frombuffer(buffer, np.uint8).__array_interface__["data"][0] % 8):
        start -= start % 8
        buffer, places = memoryview(bytearray(buffer[start:])), [(b, i - start, j - start) for b, i, j in places]
    return [(block, buffer[begin:stop]) for block, begin, stop in places]

"""Masks: words that two sides derive from a key, added to and taken from vectors of words.

A mask is the AES stream of a key, read as little-endian words: word j of width w bytes is bytes w*j .. w*j + w of the
stream, so that any of them can be had without the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import BLOCK_BYTES, blocks_at, stream

__all__ = ["Mask", "Words", "add_masks_", "blocks_per_row", "row_masks"]

Words = NDArray[np.unsignedinteger[Any]]  # uint32 or uint64
_CHUNK_BYTES = 1 << 17  # stream, zeros and sum of a chunk stay in a core's cache together
_AT_ONCE = 256  # streams open at a time


class Mask(NamedTuple):
    """A key, and whether its stream is added (1) or taken away (-1)."""

    key: bytes
    sign: int

    def __repr__(self) -> str:
        return f"Mask(sign={self.sign})"


def add_masks_(words: Sequence[Words], masks: Sequence[Mask]) -> None:
    """Add streams to vectors that lie one after another in each of them; modulo the words' size.

    Args:
        words: (n,) uint32 or uint64 each, contiguous; the first begins at the stream's first byte.
        masks: whose streams.

    Example:
        >>> total = np.array([5], np.uint32)
        >>> add_masks_([total], [Mask(bytes(32), 1), Mask(bytes(32), -1)])
        >>> int(total[0])
        5
    """
    zeros, out = memoryview(bytes(_CHUNK_BYTES)), bytearray(_CHUNK_BYTES + BLOCK_BYTES)
    for begin in range(0, len(masks), _AT_ONCE):
        streams = [(stream(mask.key), mask.sign) for mask in masks[begin : begin + _AT_ONCE]]
        for vector in words:
            size = _CHUNK_BYTES // vector.itemsize
            for start in range(0, len(vector), size):
                part = vector[start : start + size]
                read, drawn = zeros[: part.nbytes], np.frombuffer(out, part.dtype, len(part))
                for cipher, sign in streams:
                    cipher.update_into(read, out)
                    if sign > 0:
                        np.add(part, drawn, out=part)
                    else:
                        np.subtract(part, drawn, out=part)


def blocks_per_row(width: int, dtype: np.dtype[Any]) -> int:
    """How many blocks of a stream are set aside for a row of so many words: rows begin at whole blocks."""
    return -(-width * dtype.itemsize // BLOCK_BYTES)


def row_masks(key: bytes, rows: NDArray[np.int64], width: int, dtype: np.dtype[Any]) -> Words:
    """The masks of some rows of a table, wherever they lie, without those of the others.

    Args:
        key: of the stream for this table.
        rows: (r,) int64, numbers of rows, >= 0.
        width: words in a row.
        dtype: uint32 or uint64.

    Returns:
        (r, width) words; those of row j begin at word j * blocks * 16 / itemsize of the stream.
    """
    blocks = blocks_per_row(width, dtype)
    at = rows[:, None] * blocks + np.arange(blocks)  # (r, blocks)
    return blocks_at(key, at.reshape(-1)).reshape(len(rows), blocks * BLOCK_BYTES).view(dtype)[:, :width]

"""Numbers modulo a power of two: how large it must be, and how its words are packed; and fixed point."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partwise.channels.streams import Words
from partwise.core.errors import ProtocolError

__all__ = ["FixedPoint", "Ring", "fitting_ring"]

_GROUP = 8  # so many words of k bits fill k bytes


@dataclass(frozen=True)
class Ring:
    """Whole numbers modulo 2**bits, kept in words of 32 or 64 bits whose upper bits do not count.

    Args:
        bits: k, in 1..64.

    Example:
        >>> ring = Ring(5)
        >>> ring.unpack(ring.pack(np.array([1, 31, 33], np.uint32)), 3)
        array([ 1, 31,  1], dtype=uint32)
    """

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 64:
            raise ValueError(f"Ring(bits={self.bits}): must lie in 1..64, got {self.bits}. 32 is usual.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the words."""
        return np.dtype(np.uint32 if self.bits <= 32 else np.uint64)

    @property
    def modulus(self) -> int:
        """2**bits."""
        return 1 << self.bits

    def reduced(self, words: Words) -> Words:
        """The same words without the bits that do not count."""
        if self.bits == 8 * words.itemsize:
            return words
        reduced: Words = words & words.dtype.type(self.modulus - 1)
        return reduced

    def packed_bytes(self, count: int) -> int:
        """How long so many packed words are."""
        return (count * self.bits + 7) // 8

    def pack(self, words: Words) -> bytes:
        """Words as a row of k-bit numbers, the lowest bit first."""
        if self.bits in (32, 64) or not len(words):
            return words.astype(f"<u{words.itemsize}", copy=False).tobytes()
        groups = -(-len(words) // _GROUP)
        padded = np.zeros(groups * _GROUP, np.uint64)
        padded[: len(words)] = self.reduced(words)
        by_place = padded.reshape(groups, _GROUP)
        packed = np.zeros(groups * self.bits + 8, np.uint8)
        for place in range(_GROUP):
            byte, shift = divmod(place * self.bits, 8)
            if 8 <= self.bits <= 57:  # a word and its shift fit into 8 bytes, and no two of a place overlap
                window = _windows(packed, byte, groups, self.bits)
                window |= by_place[:, place] << np.uint64(shift)
                continue
            for offset in range(-(-(shift + self.bits) // 8)):
                word = by_place[:, place]
                moved = word << np.uint64(shift) if not offset else word >> np.uint64(8 * offset - shift)
                packed[byte + offset : groups * self.bits : self.bits] |= (moved & np.uint64(0xFF)).astype(np.uint8)
        data: bytes = packed[: self.packed_bytes(len(words))].tobytes()
        return data

    def unpack(self, data: bytes | memoryview, count: int) -> Words:
        """Undo `pack`.

        Raises:
            ProtocolError: another length than so many words have, or bits behind the last word.
        """
        if len(data) != self.packed_bytes(count):
            raise ProtocolError(
                f"Ring({self.bits}): {count} words have {self.packed_bytes(count)} bytes, got {len(data)}. "
                "Both sides must derive the same layout."
            )
        if self.bits in (32, 64) or not count:
            return np.frombuffer(data, f"<u{self.dtype.itemsize}").astype(self.dtype)
        groups = -(-count // _GROUP)
        padded = np.zeros(groups * self.bits + 16, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        words = np.zeros((groups, _GROUP), self.dtype)
        mask = np.uint64(self.modulus - 1)
        for place in range(_GROUP):
            byte, shift = divmod(place * self.bits, 8)
            if self.bits <= 57:
                words[:, place] = (_windows(padded, byte, groups, self.bits) >> np.uint64(shift)) & mask
                continue
            low, high = (_windows(padded, byte + b, groups, self.bits) for b in (0, 8))
            whole = low >> np.uint64(shift) | (high << np.uint64(64 - shift) if shift else np.uint64(0))
            words[:, place] = whole & mask
        found = words.reshape(-1)
        if found[count:].any() or (count * self.bits % 8 and data[-1] >> (count * self.bits % 8)):
            raise ProtocolError(f"Ring({self.bits}): bits behind the last word must be zero. Send it again.")
        return found[:count]

    def random(self, count: int) -> Words:
        """Uniform words that are not zero, from the operating system's generator."""
        words = self.reduced(np.frombuffer(os.urandom(count * self.dtype.itemsize), self.dtype).copy())
        while (zero := np.flatnonzero(words == 0)).size:
            words[zero] = self.reduced(np.frombuffer(os.urandom(zero.size * self.dtype.itemsize), self.dtype))
        return words


def _windows(data: NDArray[np.uint8], start: int, groups: int, stride: int) -> NDArray[np.uint64]:
    """Eight bytes at every stride, as numbers; views, wherever they lie."""
    found: NDArray[np.uint64] = np.ndarray((groups,), "<u8", data.data, start, (stride,))
    return found


def fitting_ring(levels: int, max_weight: int, cohort: int) -> Ring:
    """The smallest ring in which the sum of a cohort's weighted words cannot run over.

    Args:
        levels: L, the largest word of one client before it is weighted.
        max_weight: W.
        cohort: n, clients at most.

    Raises:
        ValueError: it would need more than 64 bits.

    Example:
        >>> fitting_ring(2**16 - 1, 1, 1000), fitting_ring(2**20 - 1, 1, 100)
        (Ring(bits=26), Ring(bits=27))
    """
    bits = (levels * max_weight * cohort).bit_length()
    if bits > 64:
        raise ValueError(
            f"fitting_ring(levels={levels}, max_weight={max_weight}, cohort={cohort}): the sum must fit into 64 bits, "
            f"got {bits}. Use fewer bits per value, a smaller max_weight or a smaller cohort."
        )
    return Ring(bits)


@dataclass(frozen=True)
class FixedPoint:
    """Values in [-limit, limit] as whole numbers 0..levels, and weighted sums of them back.

    q(x) = round((x + c) L / 2c); a sum S of w q over clients whose weights sum to A stands for S 2c/L - A c. An
    even L has a level at zero.

    Args:
        limit: c, > 0.
        levels: L >= 1.

    Example:
        >>> point = FixedPoint(1.0, 255)
        >>> point.encode(np.array([-1.2, -1.0, 0.0, 0.5, 1.0]))
        array([  0,   0, 128, 191, 255], dtype=uint64)
    """

    limit: float
    levels: int

    @classmethod
    def of_bits(cls, limit: float, bits: int) -> FixedPoint:
        """With the most levels that so many bits have and that are even: zero has one of its own."""
        return cls(limit, 2**bits - 2)

    @property
    def step(self) -> float:
        """How far apart two levels are."""
        return 2 * self.limit / self.levels

    def __post_init__(self) -> None:
        if not self.limit > 0 or self.levels < 1:
            raise ValueError(
                f"FixedPoint(limit={self.limit}, levels={self.levels}): needs a limit above 0 and at least 1 level, "
                f"got {self.limit} and {self.levels}. The limit is the clip's bound."
            )

    def encode(self, values: NDArray[Any], uniform: NDArray[Any] | None = None) -> NDArray[np.uint64]:
        """Whole numbers for values, which are cut to the limits.

        Args:
            values: floats.
            uniform: as many in [0, 1): rounds up where it lies below the fraction, so that the mean is right. Without
                it, to the nearest, ties to even.
        """
        scaled = np.clip(values, -self.limit, self.limit).astype(np.float64)
        scaled += self.limit
        scaled *= self.levels / (2 * self.limit)
        if uniform is None:
            np.rint(scaled, out=scaled)
        else:
            # A level itself stays: the fraction of 3 - 1e-16 is rounding, not a value.
            near = np.rint(scaled)
            is_level = np.abs(scaled - near) < 1e-9
            scaled += uniform
            np.floor(scaled, out=scaled)
            np.copyto(scaled, near, where=is_level)
        np.clip(scaled, 0, self.levels, out=scaled)
        codes: NDArray[np.uint64] = scaled.astype(np.uint64)
        return codes

    def decode(self, total: Words, weight: NDArray[Any] | float) -> NDArray[np.float64]:
        """What a sum of weighted words stands for. weight: A, broadcastable; nobody's sum, 0, is 0."""
        found: NDArray[np.float64] = total.astype(np.float64) * (2 * self.limit / self.levels) - weight * self.limit
        return found

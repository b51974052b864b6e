"""Numbers modulo a prime below 2^31: products of matrices, and polynomials through points.

Elements are uint64 arrays of 0..p - 1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Elements", "Field"]

Elements = NDArray[np.uint64]
_HALF = 16  # bits of the lower half of an element
_LOW = np.uint64((1 << _HALF) - 1)
_COLUMNS = 1 << 15  # of a product at a time: the halves of a chunk stay in a core's cache


@dataclass(frozen=True)
class Field:
    """Whole numbers modulo a prime.

    Args:
        prime: p, below 2^31.

    Example:
        >>> Field(97).lagrange(np.array([1, 2, 3]), np.array([4, 5]))
        array([[ 4, 94],
               [ 3, 95],
               [ 2, 96]], dtype=uint64)
    """

    prime: int = 2**31 - 1

    def __post_init__(self) -> None:
        if not 2 < self.prime < 2**31:
            raise ValueError(f"Field(prime={self.prime}): must lie in 3..2^31 - 1, got {self.prime}. Take 2^31 - 1.")

    def reduced(self, words: NDArray[Any]) -> Elements:
        """Words modulo p."""
        found: Elements = words.astype(np.uint64) % np.uint64(self.prime)
        return found

    def random(self, count: int) -> Elements:
        """Uniform elements, from the operating system's generator."""
        found = self._words(count)
        while (high := np.flatnonzero(found >= self.prime)).size:  # drawn anew, so that none is likelier than another
            found[high] = self._words(high.size)
        return found

    def _words(self, count: int) -> Elements:
        mask = np.uint32((1 << self.prime.bit_length()) - 1)
        found: Elements = (np.frombuffer(os.urandom(4 * count), "<u4") & mask).astype(np.uint64)
        return found

    def product(self, one: Elements, other: Elements) -> Elements:
        """The product of two matrices, (n, k) and (k, m), with k below 2^20.

        By halves of 16 bits in float64, in which sums of so many products of halves are exact.
        """
        p, half = np.uint64(self.prime), np.uint64(_HALF)
        left = [(one >> half).astype(np.float64), (one & _LOW).astype(np.float64)]
        found = np.empty((len(one), other.shape[1]), np.uint64)
        for start in range(0, other.shape[1], _COLUMNS):
            part = other[:, start : start + _COLUMNS]
            high, low = (part >> half).astype(np.float64), (part & _LOW).astype(np.float64)
            top = (left[0] @ high).astype(np.uint64) % p
            middle = (left[0] @ low + left[1] @ high).astype(np.uint64) % p
            bottom = (left[1] @ low).astype(np.uint64)
            found[:, start : start + _COLUMNS] = ((((top << half) + middle) % p << half) + bottom) % p
        return found

    def power(self, base: Elements, exponent: int) -> Elements:
        """Each element to a power, >= 0."""
        p, found = np.uint64(self.prime), np.ones_like(base)
        while exponent:
            if exponent & 1:
                found = found * base % p
            base, exponent = base * base % p, exponent >> 1
        return found

    def lagrange(self, at: NDArray[np.int64], of: NDArray[np.int64]) -> Elements:
        """Weights by which a polynomial's values at some points give its values at others.

        Args:
            at: (n,), where it is wanted, none of them among `of`.
            of: (k,), where it is known, distinct; its degree is below k.

        Returns:
            (n, k).
        """
        p = np.uint64(self.prime)
        apart = self._differences(of, of)  # (k, k)
        np.fill_diagonal(apart, 1)
        away = self._differences(at, of)  # (n, k)
        below, above = np.ones(len(of), np.uint64), np.ones(len(at), np.uint64)
        for i in range(len(of)):
            below, above = below * apart[:, i] % p, above * away[:, i] % p
        inverse = self.power(away * below % p, self.prime - 2)  # of a product, by Fermat
        found: Elements = above[:, None] * inverse % p
        return found

    def _differences(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> Elements:
        found: Elements = ((one[:, None] - other) % self.prime).astype(np.uint64)
        return found

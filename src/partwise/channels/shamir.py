"""Shamir's secret sharing over the prime P = 2^521 - 1, for many secrets and many shares at once.

Notation: t shares of n give a secret back. Elements are 19 limbs of 28 bits, so that a limb times a point of 32 bits
fits into a word; arrays of limbs are limb-major, (19, secrets, shares).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partwise.core.errors import ProtocolError

__all__ = ["PRIME", "SHARE_BYTES", "combine", "element", "split", "weights_at_zero"]

PRIME = 2**521 - 1
SHARE_BYTES = 66
_LIMB, _LIMBS, _TOP = 28, 19, 521 - 28 * 18  # bits of a limb, how many, and how many of the last one's bits count
_MASK = np.uint64((1 << _LIMB) - 1)
_TOP_MASK = np.uint64((1 << _TOP) - 1)
_SHIFT, _TOP_SHIFT = np.uint64(_LIMB), np.uint64(_TOP)
_MAX_POINT = 2**32


def split(hidden: Sequence[int], threshold: int, points: Sequence[int]) -> list[list[bytes]]:
    """Shares of each secret at each point: f(point) for a random f of degree t - 1 with f(0) = secret.

    Args:
        hidden: the secrets, each in 0..P - 1.
        threshold: t, at least 1 and at most as many as there are points.
        points: where, distinct, each in 1..2^32 - 1.

    Returns:
        For each secret, its shares in the order of the points; 66 bytes each, little endian.

    Example:
        >>> shares = split([42], 2, [1, 2, 3])[0]
        >>> combine({1: shares[0], 3: shares[2]}, 2)
        42
    """
    if not 1 <= threshold <= len(points) or len(set(points)) < len(points):
        raise ValueError(
            f"split(threshold={threshold}): needs between 1 and {len(points)} distinct points, got {threshold} of "
            f"{len(set(points))}. Lower the threshold or ask a larger cohort."
        )
    if not all(0 < p < _MAX_POINT for p in points) or not all(0 <= s < PRIME for s in hidden):
        raise ValueError("split(): points lie in 1..2^32 - 1 and secrets below 2^521 - 1, got others. Number from 1.")
    at = np.array(points, np.uint64)
    total = np.zeros((_LIMBS, len(hidden), len(points)), np.uint64)
    rows = [[*(secrets.randbelow(PRIME) for _ in range(threshold - 1)), secret] for secret in hidden]
    for coefficients in zip(*rows, strict=True):  # Horner, the highest first, all secrets and points together
        total *= at
        total += _limbs(coefficients)[:, :, None]
        _carry_(total)
    return [[_bytes(limbs) for limbs in shares.T] for shares in total.transpose(1, 0, 2)]


def _limbs(numbers: Sequence[int]) -> NDArray[np.uint64]:
    """(19, numbers)."""
    mask = (1 << _LIMB) - 1
    return np.array([[(x >> (_LIMB * i)) & mask for x in numbers] for i in range(_LIMBS)], np.uint64)


def _carry_(total: NDArray[Any]) -> None:
    """Bring limbs below 2^28, but for the second, and the whole below 2^521 + a little."""
    for i in range(_LIMBS - 1):
        total[i + 1] += total[i] >> _SHIFT
        total[i] &= _MASK
    total[0] += total[-1] >> _TOP_SHIFT  # 2^521 is 1 modulo P
    total[-1] &= _TOP_MASK
    total[1] += total[0] >> _SHIFT
    total[0] &= _MASK


def _bytes(limbs: NDArray[Any]) -> bytes:
    number = sum(int(limb) << (_LIMB * i) for i, limb in enumerate(limbs)) % PRIME
    return number.to_bytes(SHARE_BYTES, "little")


def element(share: bytes) -> int:
    """The number that a share stands for.

    Raises:
        ProtocolError: another length, or a number that is not below P: an element has one form only.
    """
    if len(share) != SHARE_BYTES:
        raise ProtocolError(f"element(): a share has {SHARE_BYTES} bytes, got {len(share)}. Send it again.")
    number = int.from_bytes(share, "little")
    if number >= PRIME:
        raise ProtocolError("element(): a share must be below 2^521 - 1, got a larger number. Send it again.")
    return number


def weights_at_zero(points: Sequence[int], prime: int = PRIME) -> list[int]:
    """Lagrange weights: the sum of weight times share is the secret, for any polynomial below so many points."""
    found = []
    for x in points:
        above, below = 1, 1
        for other in points:
            if other != x:
                above = above * other % prime
                below = below * (other - x) % prime
        found.append(above * pow(below, -1, prime) % prime)
    return found


def combine(shares: Mapping[int, bytes], threshold: int, weights: Mapping[int, int] | None = None) -> int:
    """The secret behind t shares; of more, those at the lowest points are used.

    Args:
        shares: point -> share.
        threshold: t.
        weights: point -> weight, where they are known for the t lowest points.

    Raises:
        ProtocolError: fewer than t shares, or one that is no element.
    """
    points = sorted(shares)[:threshold]
    if len(points) < threshold:
        raise ProtocolError(
            f"combine(threshold={threshold}): needs {threshold} shares, got {len(points)}. Too many clients were lost."
        )
    if weights is None:
        weights = dict(zip(points, weights_at_zero(points), strict=True))
    return sum(weights[x] * element(shares[x]) for x in points) % PRIME

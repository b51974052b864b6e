"""Merkle trees in the shape of RFC 6962, and the commitment to a set of indices without telling which.

Notation: n leaves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

__all__ = ["add_leaf_", "index_leaves", "merkle_path", "merkle_root", "root_of", "verify_path"]


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(n: int) -> int:
    """The largest power of two below n >= 2."""
    return 1 << ((n - 1).bit_length() - 1)


def _root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return _leaf(leaves[0])
    k = _split(len(leaves))
    return _node(_root(leaves[:k]), _root(leaves[k:]))


def merkle_root(leaves: Sequence[bytes]) -> str:
    """The root over some data, 64 hexadecimal digits.

    Example:
        >>> merkle_root([])[:8]
        'e3b0c442'
    """
    return _root(leaves).hex()


def add_leaf_(peaks: list[bytes], count: int, data: bytes) -> None:
    """Add a leaf to a tree that grows: of n leaves only about log2 n hashes are kept.

    Args:
        peaks: roots of the full trees, largest first, of which the tree so far is made.
        count: leaves so far, n >= 0.
        data: of the new leaf.

    Example:
        >>> peaks: list[bytes] = []
        >>> for at, data in enumerate([b"a", b"b", b"c"]):
        ...     add_leaf_(peaks, at, data)
        >>> root_of(peaks) == merkle_root([b"a", b"b", b"c"])
        True
    """
    found = _leaf(data)
    while count & 1:  # as in binary addition: two trees of one size become one
        found, count = _node(peaks.pop(), found), count >> 1
    peaks.append(found)


def root_of(peaks: Sequence[bytes]) -> str:
    """The root of a tree that grew by `add_leaf_`: that of `merkle_root` over the same leaves."""
    if not peaks:
        return merkle_root([])
    found = peaks[-1]
    for left in reversed(peaks[:-1]):
        found = _node(left, found)
    return found.hex()


def merkle_path(leaves: Sequence[bytes], at: int) -> list[str]:
    """The hashes that lead from leaf `at` to the root, nearest first: (about log2 n,)."""
    if len(leaves) <= 1:
        return []
    k = _split(len(leaves))
    if at < k:
        return [*merkle_path(leaves[:k], at), _root(leaves[k:]).hex()]
    return [*merkle_path(leaves[k:], at - k), _root(leaves[:k]).hex()]


def verify_path(data: bytes, at: int, count: int, path: Sequence[str], root: str) -> bool:
    """Whether `data` is leaf `at` of the `count` under a root.

    Example:
        >>> leaves = [b"a", b"b", b"c"]
        >>> verify_path(b"c", 2, 3, merkle_path(leaves, 2), merkle_root(leaves))
        True
    """
    found = _climb(data, at, count, list(path))
    return found is not None and found.hex() == root


def _climb(data: bytes, at: int, count: int, path: list[str]) -> bytes | None:
    if not 0 <= at < count:
        return None
    if count == 1:
        return None if path else _leaf(data)
    if not path:
        return None
    k, other = _split(count), bytes.fromhex(path[-1])
    if at < k:
        left = _climb(data, at, k, path[:-1])
        return None if left is None else _node(left, other)
    right = _climb(data, at - k, count - k, path[:-1])
    return None if right is None else _node(other, right)


def index_leaves(indices: Sequence[int], secret: bytes | None) -> list[bytes]:
    """What a client commits to of the indices it holds: salt and number, one leaf each, in ascending order.

    Args:
        indices: below 2^32.
        secret: the client's, of which salts are made: without salts anybody could try all small numbers. None for
            salts of zero, which hide nothing.
    """
    found = []
    for index in sorted(indices):
        number = index.to_bytes(4, "little")
        salt = bytes(16) if secret is None else hmac.new(secret, number, hashlib.sha256).digest()[:16]
        found.append(salt + number)
    return found

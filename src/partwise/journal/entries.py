"""Entries of a journal: canonical bytes, and the hash that chains them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from partwise.core.codec import encode
from partwise.core.errors import ProtocolError
from partwise.core.update import Update

__all__ = ["GENESIS_PREV", "TYPES", "Entry", "canonical", "commitment", "digest_of", "entry_hash", "is_digest"]

_TAG = b"submodel-ledger/v1\x00"
GENESIS_PREV = "0" * 64
TYPES = (
    "genesis",
    "register",
    "deposit",
    "commit",
    "reveal",
    "evaluate",
    "settle",
    "slash",
    "withdraw",
    "checkpoint",
    "revoke",
)


class Entry(NamedTuple):
    """One fact.

    Args:
        seq: place in the journal, from 0.
        prev: hash of the entry before; 64 zeros for the first.
        round: that it belongs to.
        type: one of `TYPES`.
        author: who says so.
        payload: what; strings, integers, lists and objects of these. No floats, so that bytes never differ.
    """

    seq: int
    prev: str
    round: int
    type: str
    author: str
    payload: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """The object that is hashed."""
        return {"v": 1, **self._asdict(), "payload": dict(self.payload)}


def canonical(value: Any) -> bytes:
    """The one way to write a value: keys sorted, no spaces, ASCII.

    Raises:
        ProtocolError: a float, a null, a boolean, or an integer of 2^53 or more.

    Example:
        >>> canonical({"b": [1, "x"], "a": 2})
        b'{"a":2,"b":[1,"x"]}'
    """
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _check(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | list | tuple | dict):
        raise ProtocolError(
            f"canonical(): a journal holds strings, integers, lists and objects, got {value!r}. Write numbers in "
            "millionths, say."
        )
    if isinstance(value, int) and abs(value) >= 1 << 53:
        raise ProtocolError(f"canonical(): an integer must be below 2^53, got {value}. Write it as a string.")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ProtocolError(f"canonical(): a key must be a string, got {key!r}. Write str(key).")
            _check(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner)


def entry_hash(entry: Entry) -> str:
    """SHA-256 over a tag and the entry's canonical bytes; 64 hexadecimal digits."""
    return hashlib.sha256(_TAG + canonical(entry.plain())).hexdigest()


def digest_of(update: Update | bytes) -> str:
    """SHA-256 of an update as it is encoded, or of bytes: what a journal knows of a contribution.

    Example:
        >>> digest_of(b"update-of-client-a")[:16]
        'ae816ddc98c309dd'
    """
    return hashlib.sha256(update if isinstance(update, bytes) else bytes(encode(update))).hexdigest()


def commitment(nonce: bytes, digest: str) -> str:
    """What is told of a digest before it is shown: SHA-256(2, nonce, digest), so that nobody can copy it.

    Args:
        nonce: 32 random bytes, kept until then.
        digest: as of `digest_of`.

    Raises:
        ProtocolError: a nonce or digest of another length.
    """
    if len(nonce) != 32 or not is_digest(digest):
        raise ProtocolError(
            f"commitment(): needs 32 bytes and a digest of 64 digits, got {len(nonce)} and {digest!r}. "
            "Use os.urandom(32) and digest_of(update)."
        )
    return hashlib.sha256(b"\x02" + nonce + bytes.fromhex(digest)).hexdigest()


def is_digest(text: object) -> bool:
    """Whether it is 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")

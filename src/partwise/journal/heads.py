"""Heads: the operator's signatures over place and hash of an entry, of which two for one place prove two stories."""

from __future__ import annotations

from collections.abc import Sequence

from partwise.channels.crypto import verify
from partwise.core.errors import ProtocolError

__all__ = ["are_two_heads", "head_bytes", "is_signed"]

_HEAD = b"submodel-ledger/head/v1\x00"


def head_bytes(seq: int, digest: str) -> bytes:
    """What the operator signs of an entry: its place and its hash."""
    return _HEAD + seq.to_bytes(8, "big") + bytes.fromhex(digest)


def is_signed(key: str, text: bytes, signature: str) -> bool:
    """Whether the signature over a text is that of a public key; both in hexadecimal digits."""
    try:
        return verify(bytes.fromhex(key), text, bytes.fromhex(signature))
    except (ValueError, ProtocolError):
        return False


def are_two_heads(seq: int, heads: Sequence[Sequence[str]], operator: str) -> bool:
    """Whether an operator signed two different entries for one place.

    Args:
        seq: the place.
        heads: (hash of an entry, the operator's signature), two of them.
        operator: its public key.
    """
    (one, _), (other, _) = heads
    return one != other and all(is_signed(operator, head_bytes(seq, digest), head) for digest, head in heads)

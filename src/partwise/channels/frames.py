"""The messages of a masked sum, as bytes: little endian, of one form only, refused when anything is left over.

    header      "SFSA" | u8 version | u8 step | u32 round | u32 client
    advertise   header | 32 key for shares | 32 key for masks | 64 signature, or nothing
    shares      header | 32 commitment to the self mask | u32 count | count times: u32 to | 12 nonce | u16 n | n sealed
    masked      header | u32 withheld | u8 bits of a word | u32 count | 64 numbers | packed words
    consistency header | 32 digest of the survivors | 64 signature
    unmask      header | u32 count | count times: u32 whose | u8 kind | 66 share
    blocks      header | u32 count | count times: u32 to | 12 nonce | u32 n | n sealed
    elements    header | u32 withheld | u32 count | packed elements of 31 bits

What is sealed in a share: u32 from | u32 to | u32 round | 66 share of the mask key | 66 share of the self mask;
in a block: u32 from | u32 to | u32 round | packed elements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import KEY_BYTES, NONCE_BYTES, SEAL_BYTES, SIGNATURE_BYTES
from partwise.channels.ring import Ring
from partwise.channels.shamir import SHARE_BYTES, element
from partwise.core.errors import ProtocolError

__all__ = [
    "CODED_SUM",
    "CODED_WORDS",
    "HEAD_BYTES",
    "MASK_KEY",
    "SELF_MASK",
    "Advertised",
    "BlocksSent",
    "Consistency",
    "ElementsSent",
    "MaskedWords",
    "Sealed",
    "SharesSent",
    "Step",
    "Unmasked",
    "pack_block",
    "pack_share",
    "read_advertised",
    "read_block",
    "read_blocks",
    "read_consistency",
    "read_elements",
    "read_masked",
    "read_share",
    "read_shares",
    "read_unmasked",
]

_MAGIC, _VERSION = b"SFSA", 1
_PACKING = Ring(31)  # of elements
_HEADER = struct.Struct("<4sBBII")
_TO, _WHOSE, _COUNT = struct.Struct(f"<I{NONCE_BYTES}sH"), struct.Struct(f"<IB{SHARE_BYTES}s"), struct.Struct("<I")
_BLOCK, _ROUTE = struct.Struct(f"<I{NONCE_BYTES}sI"), struct.Struct("<III")
_WORDS, _ELEMENTS = struct.Struct("<IBI"), struct.Struct("<II")
_SHARE = struct.Struct(f"<III{SHARE_BYTES}s{SHARE_BYTES}s")
HEAD_BYTES = 64
SELF_MASK, MASK_KEY = 0, 1  # the kinds of share
CODED_WORDS, CODED_SUM = 6, 7  # the steps at which elements are sent


class Step(NamedTuple):
    """Which message of which exchange, and whose."""

    step: int
    round: int
    client: int

    def pack(self) -> bytes:
        """The header."""
        return _HEADER.pack(_MAGIC, _VERSION, *self)


class Advertised(NamedTuple):
    """Two public keys. signature: empty where nobody signs."""

    share_key: bytes
    mask_key: bytes
    signature: bytes = b""

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        return Step(0, round, client).pack() + b"".join(self)


class Sealed(NamedTuple):
    """A share that only its receiver can open."""

    nonce: bytes
    text: bytes


class SharesSent(NamedTuple):
    """A commitment to the self mask, and receiver -> sealed share."""

    commitment: bytes
    sealed: Mapping[int, Sealed]

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        parts = [Step(1, round, client).pack(), self.commitment, _COUNT.pack(len(self.sealed))]
        for to in sorted(self.sealed):
            nonce, text = self.sealed[to]
            parts += [_TO.pack(to, nonce, len(text)), text]
        return b"".join(parts)


class MaskedWords(NamedTuple):
    """Masked words.

    Args:
        withheld: how many coordinates too few others hold for them to be sent.
        bits: of a word.
        number: how many words.
        head: 64 bytes of numbers of 64 bits.
        words: packed.
    """

    withheld: int
    bits: int
    number: int
    head: bytes
    words: bytes | memoryview

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        numbers = _WORDS.pack(self.withheld, self.bits, self.number)
        return b"".join([Step(2, round, client).pack(), numbers, self.head, self.words])


class Consistency(NamedTuple):
    """A signature over who survived."""

    digest: bytes
    signature: bytes

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        return Step(3, round, client).pack() + self.digest + self.signature


class Unmasked(NamedTuple):
    """Client -> kind and share."""

    shares: Mapping[int, tuple[int, bytes]]

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        entries = [_WHOSE.pack(of, *self.shares[of]) for of in sorted(self.shares)]
        return b"".join([Step(4, round, client).pack(), _COUNT.pack(len(entries)), *entries])


class BlocksSent(NamedTuple):
    """Receiver -> sealed block of a coded mask."""

    sealed: Mapping[int, Sealed]

    def pack(self, round: int, client: int) -> bytes:
        """The message."""
        parts = [Step(5, round, client).pack(), _COUNT.pack(len(self.sealed))]
        for to in sorted(self.sealed):
            nonce, text = self.sealed[to]
            parts += [_BLOCK.pack(to, nonce, len(text)), text]
        return b"".join(parts)


class ElementsSent(NamedTuple):
    """Elements of a field. withheld: how many coordinates too few others hold for them to be sent."""

    withheld: int
    elements: NDArray[np.uint64]

    def pack(self, step: int, round: int, client: int) -> bytes:
        """The message."""
        numbers = _ELEMENTS.pack(self.withheld, len(self.elements))
        return b"".join([Step(step, round, client).pack(), numbers, _PACKING.pack(self.elements)])


def _fail(rule: str) -> ProtocolError:
    return ProtocolError(f"frame: {rule}. Send it again, from the same version of Partwise.")


class _Reader:
    """Takes bytes from the front, and refuses to end before they do."""

    def __init__(self, data: object, expected: Step) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise _fail(f"a message is bytes, got {type(data).__name__}")
        self._data, self._at = memoryview(data), 0
        magic, version, *rest = _HEADER.unpack(self.take(_HEADER.size))
        if magic != _MAGIC or version != _VERSION:
            raise _fail(f"a message begins with {_MAGIC!r} and version {_VERSION}, got {bytes(magic)!r} and {version}")
        if Step(*rest) != expected:
            raise _fail(f"must be {expected}, got {Step(*rest)}")

    def take(self, count: int) -> memoryview:
        if self._at + count > len(self._data):
            raise _fail(f"needs {self._at + count} bytes, got {len(self._data)}: it breaks off")
        self._at += count
        return self._data[self._at - count : self._at]

    def copy(self, count: int) -> bytes:
        return self.take(count).tobytes()

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def entries(self, form: struct.Struct, at_most: int) -> Iterator[tuple[int, bytes | int, bytes | int]]:
        """Counted entries, by ascending client."""
        (count,) = _COUNT.unpack(self.take(_COUNT.size))
        if count > at_most or count * form.size > self.left:
            raise _fail(f"may have {at_most} entries, and as many as there are bytes for, got {count}")
        last = -1
        for _ in range(count):
            entry = form.unpack(self.take(form.size))
            if entry[0] <= last:
                raise _fail(f"entries ascend and none comes twice, got client {entry[0]} after {last}")
            last = entry[0]
            yield entry

    def end(self) -> None:
        if self.left:
            raise _fail(f"ends after {self._at} bytes, got {len(self._data)}")


def read_advertised(data: object, round: int, client: int, *, is_signed: bool) -> Advertised:
    """Undo `Advertised.pack`. Raises ProtocolError, as all of these do."""
    reader = _Reader(data, Step(0, round, client))
    found = Advertised(reader.copy(KEY_BYTES), reader.copy(KEY_BYTES), reader.copy(SIGNATURE_BYTES if is_signed else 0))
    reader.end()
    return found


def read_shares(data: object, round: int, client: int, receivers: Sequence[int]) -> SharesSent:
    """Undo `SharesSent.pack`; it must have a share for each receiver and for nobody else."""
    reader = _Reader(data, Step(1, round, client))
    commitment, length = reader.copy(KEY_BYTES), _SHARE.size + SEAL_BYTES
    sealed = {}
    for to, nonce, size in reader.entries(_TO, len(receivers)):
        if size != length:
            raise _fail(f"a sealed share has {length} bytes, got {size!r}")
        assert isinstance(nonce, bytes)
        sealed[to] = Sealed(nonce, reader.copy(length))
    reader.end()
    if sealed.keys() != set(receivers):
        raise _fail(f"has a share for each of {len(receivers)} neighbours, got {len(sealed)}, or others")
    return SharesSent(commitment, sealed)


def read_masked(data: object, round: int, client: int, expected: tuple[int, int, int]) -> MaskedWords:
    """Undo `MaskedWords.pack`. expected: bits of a word, words, and bytes that they are packed in."""
    reader = _Reader(data, Step(2, round, client))
    withheld, bits, count = _WORDS.unpack(reader.take(_WORDS.size))
    if (bits, count) != expected[:2]:
        raise _fail(f"has {expected[1]} words of {expected[0]} bits, got {count} of {bits}")
    found = MaskedWords(withheld, bits, count, reader.copy(HEAD_BYTES), reader.take(expected[2]))
    reader.end()
    return found


def read_consistency(data: object, round: int, client: int) -> Consistency:
    """Undo `Consistency.pack`."""
    reader = _Reader(data, Step(3, round, client))
    found = Consistency(reader.copy(KEY_BYTES), reader.copy(SIGNATURE_BYTES))
    reader.end()
    return found


def read_unmasked(data: object, round: int, client: int, kinds: Mapping[int, int]) -> Unmasked:
    """Undo `Unmasked.pack`. kinds: client -> the kind of its share that was asked for; some may be missing."""
    reader = _Reader(data, Step(4, round, client))
    shares = {}
    for of, kind, share in reader.entries(_WHOSE, len(kinds)):
        assert isinstance(kind, int)
        assert isinstance(share, bytes)
        if kinds.get(of) != kind:
            raise _fail(f"has the kinds of share that were asked for, got {kind} of client {of}")
        element(share)  # has one form only
        shares[of] = (kind, share)
    reader.end()
    return Unmasked(shares)


def read_blocks(data: object, round: int, client: int, receivers: tuple[Sequence[int], int]) -> BlocksSent:
    """Undo `BlocksSent.pack`. receivers: who must have a block, and nobody else, and of how many elements."""
    reader = _Reader(data, Step(5, round, client))
    clients, count = receivers
    length, sealed = _ROUTE.size + _PACKING.packed_bytes(count) + SEAL_BYTES, {}
    for to, nonce, size in reader.entries(_BLOCK, len(clients)):
        if size != length:
            raise _fail(f"a sealed block has {length} bytes, got {size!r}")
        assert isinstance(nonce, bytes)
        sealed[to] = Sealed(nonce, reader.copy(length))
    reader.end()
    if sealed.keys() != set(clients):
        raise _fail(f"has a block for each of {len(clients)} others, got {len(sealed)}, or others")
    return BlocksSent(sealed)


def read_elements(data: object, step: Step, count: int, prime: int) -> ElementsSent:
    """Undo `ElementsSent.pack`: so many elements, each below the prime."""
    reader = _Reader(data, step)
    withheld, number = _ELEMENTS.unpack(reader.take(_ELEMENTS.size))
    if number != count:
        raise _fail(f"has {count} elements, got {number}")
    found = _elements(reader.take(_PACKING.packed_bytes(count)), count, prime)
    reader.end()
    return ElementsSent(withheld, found)


def _elements(packed: bytes | memoryview, count: int, prime: int) -> NDArray[np.uint64]:
    found = _PACKING.unpack(packed, count).astype(np.uint64)
    if (found >= prime).any():
        raise _fail(f"elements lie below {prime}, got a larger one")
    return found


def pack_block(route: tuple[int, int, int], elements: NDArray[np.uint64]) -> bytes:
    """What is sealed. route: from, to, round."""
    return _ROUTE.pack(*route) + _PACKING.pack(elements)


def read_block(text: bytes, route: tuple[int, int, int], count: int, prime: int) -> NDArray[np.uint64]:
    """Undo `pack_block`."""
    if len(text) != _ROUTE.size + _PACKING.packed_bytes(count) or _ROUTE.unpack(text[: _ROUTE.size]) != route:
        raise _fail(f"a block has {count} elements and goes from, to and in round {route}, got another")
    return _elements(text[_ROUTE.size :], count, prime)


def pack_share(route: tuple[int, int, int], mask_key: bytes, self_mask: bytes) -> bytes:
    """What is sealed. route: from, to, round."""
    return _SHARE.pack(*route, mask_key, self_mask)


def read_share(text: bytes, route: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """Undo `pack_share`: the share of the mask key, and that of the self mask."""
    if len(text) != _SHARE.size:
        raise _fail(f"a share has {_SHARE.size} bytes, got {len(text)}")
    *found, mask_key, self_mask = _SHARE.unpack(text)
    if tuple(found) != route:
        raise _fail(f"a share goes from, to and in round {route}, got {tuple(found)}")
    element(mask_key)
    element(self_mask)
    return mask_key, self_mask

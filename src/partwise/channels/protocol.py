"""What both sides of a masked sum share: its rules, the server's messages, and how keys are derived.

Notation, after the source: U1 are the clients whose keys came, U2 those whose shares came, U3 those whose masked words
came, U4 those who signed who that is, U5 those who sent shares; t shares open a secret. PK are public, SK secret keys.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017; Bell et al.,
    "Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020.
Differs: keys are derived by HKDF from the session, a digest of round, model, configuration, layout and all keys:
    clients that were told different things derive different masks, and nothing can be opened. Clients commit to their
    self masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import agree, derive_key
from partwise.channels.graphs import Graph
from partwise.channels.identities import Identities
from partwise.channels.streams import Words
from partwise.core.codec import encode, register
from partwise.core.errors import ProtocolError

__all__ = [
    "FLOOR",
    "NUMBERS",
    "MaskBegin",
    "MaskDelivered",
    "MaskHello",
    "MaskLayout",
    "MaskNeighbours",
    "MaskSigned",
    "MaskSurvivors",
    "Rules",
    "Vector",
    "advertisement",
    "check_patience",
    "digest",
    "is_well_formed",
    "model_digest",
    "pair_keys",
    "point",
    "rows_digest",
    "self_key",
    "self_secret",
    "session_of",
    "share_key",
    "survivors_text",
]

FLOOR = 3  # of two, each knows the other's value once it knows the sum
NUMBERS = 8  # words of 64 bits that go with every vector: clients, weight, examples, loss, and room
_PURPOSE = "submodel-fl/secagg/v1"


@dataclass(frozen=True)
class Rules:
    """What clients and server have agreed on beforehand.

    Args:
        graph: who masks with whom.
        identities: by which clients sign; None against a server that follows the protocol.
        min_contributors: so many must be in a sum.
        config: 32 bytes, a digest of all that must be the same on both sides.
    """

    graph: Graph
    identities: Identities | None
    min_contributors: int
    config: bytes

    @property
    def is_active(self) -> bool:
        """Whether clients guard against a server that does not follow the protocol."""
        return self.identities is not None


# What the server says


@register
class MaskBegin(NamedTuple):
    """An exchange begins."""

    session: int


@register
class MaskHello(NamedTuple):
    """A client's keys, packed, and what it holds: for the layout, seen by the server."""

    keys: bytes
    held: Any


@register
@dataclass(frozen=True, eq=False)
class MaskLayout:
    """Which words are summed; the same for every client.

    Args:
        bits: of a word.
        dense: how many words everybody sends.
        tables: name and width, in words, of tables of which each client sends its own rows.
        given: parameters that everybody was given whole, and so the same of.
        parts: what else the words mean.
    """

    bits: int
    dense: int
    tables: tuple[tuple[str, int], ...] = ()
    given: tuple[str, ...] = ()
    parts: Any = ()


@register
class MaskNeighbours(NamedTuple):
    """Whom a client masks with.

    Args:
        total: clients in U1.
        all_keys: digest of everybody's keys.
        layout: which words.
        clients: the neighbours, ascending, and oneself.
        keys: their packed keys.
        common: neighbour -> table -> rows that it holds as well, for tables.
    """

    total: int
    all_keys: bytes
    layout: MaskLayout
    clients: tuple[int, ...]
    keys: tuple[bytes, ...]
    common: Any


@register
class MaskDelivered(NamedTuple):
    """Shares for a client. total: clients in U2."""

    total: int
    sources: tuple[int, ...]
    sealed: tuple[tuple[bytes, bytes], ...]


@register
class MaskSurvivors(NamedTuple):
    """Whose masked words came, and whose did not, among a client's neighbours and itself. total: clients in U3."""

    total: int
    alive: tuple[int, ...]
    lost: tuple[int, ...]


@register
class MaskSigned(NamedTuple):
    """Who signed the survivors, and how."""

    clients: tuple[int, ...]
    signatures: tuple[bytes, ...]


class Vector(NamedTuple):
    """What one client adds to a sum.

    Args:
        head: (8,) uint64.
        dense: (words,) of the ring.
        tables: name -> rows (r,) int64 ascending, and their words (r, width).
        withheld: how many coordinates of its own it left out.
    """

    head: NDArray[np.uint64]
    dense: Words
    tables: Mapping[str, tuple[NDArray[np.int64], Words]]
    withheld: int = 0


def is_well_formed(said: Any) -> bool:
    """Whether what a server says has fields of their kinds; what they say is another matter."""
    match said:
        case MaskBegin(session):
            return type(session) is int
        case MaskNeighbours(total, all_keys, layout, clients, keys, common):
            of = type(total) is int and type(all_keys) is bytes and type(layout) is MaskLayout
            return of and _is_layout(layout) and _are_clients(clients) and _are(bytes, keys) and _is_common(common)
        case MaskDelivered(total, sources, sealed):
            pairs = isinstance(sealed, tuple) and all(_are(bytes, pair) and len(pair) == 2 for pair in sealed)
            return type(total) is int and _are_clients(sources) and pairs
        case MaskSurvivors(total, alive, lost):
            return type(total) is int and _are_clients(alive) and _are_clients(lost)
        case MaskSigned(clients, signatures):
            return _are_clients(clients) and _are(bytes, signatures)
    return False


def _are(kind: type, found: Any) -> bool:
    return isinstance(found, tuple) and all(type(x) is kind for x in found)


def _are_clients(found: Any) -> bool:
    return _are(int, found) and all(0 <= c < 2**32 - 1 for c in found)


def _is_common(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(of, dict) for of in found.values())


def _is_layout(layout: MaskLayout) -> bool:
    tables = isinstance(layout.tables, tuple) and all(isinstance(t, tuple) and len(t) == 2 for t in layout.tables)
    return tables and type(layout.bits) is int and type(layout.dense) is int and _are(str, layout.given)


def check_patience(part: object, min_contributors: int, patience_seconds: float) -> None:
    """Refuse settings by which a sum would tell of one client, or by which nobody is waited for."""
    name = type(part).__name__
    if min_contributors < FLOOR:
        raise ValueError(
            f"{name}(min_contributors={min_contributors}): must be at least {FLOOR}, got {min_contributors}: of two, "
            "each can work out the other. 5 is usual."
        )
    if not patience_seconds > 0:
        raise ValueError(f"{name}(patience_seconds={patience_seconds}): must be above 0. 60 is usual.")


# Derivations


def digest(*parts: bytes) -> bytes:
    """SHA-256 over parts and their lengths."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def point(client: int) -> int:
    """Where a client's shares are: from 1 on, for at 0 lies the secret."""
    return client + 1


def model_digest(layout: MaskLayout, given: Mapping[str, bytes]) -> bytes:
    """Of the values that every client was given whole, from what one client was given."""
    return digest(*(name.encode() + given.get(name, b"") for name in layout.given))


def session_of(round: int, model: bytes, rules: Rules, said: MaskNeighbours) -> bytes:
    """The session: two clients that were told different things have different ones."""
    return digest(round.to_bytes(8, "little"), model, rules.config, encode(said.layout), said.all_keys)


def advertisement(round: int, client: int, config: bytes, keys: bytes) -> bytes:
    """What a client signs of its keys."""
    return digest(b"advertise", round.to_bytes(8, "little"), client.to_bytes(8, "little"), config, keys)


def survivors_text(session: bytes, alive: Sequence[int]) -> bytes:
    """What clients sign of the survivors."""
    return digest(b"survivors", session, np.array(sorted(alive), "<i8").tobytes())


def _info(kind: str, round: int, u: int, v: int | None = None) -> bytes:
    pair = f"|u={u}" if v is None else f"|u={min(u, v)}|v={max(u, v)}"
    return f"{_PURPOSE}|{kind}|round={round}{pair}".encode()


def share_key(secret: bytes, public: bytes, session: bytes, route: tuple[int, int, int]) -> bytes:
    """The key under which two clients send each other shares. route: round, and the two."""
    return derive_key(agree(secret, public), salt=session, info=_info("share", *route))


def rows_digest(rows: NDArray[np.int64]) -> bytes:
    """Of the rows that two clients hold: should one of them be told others, their masks do not cancel."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).digest()


def pair_keys(
    secret: bytes, public: bytes, session: bytes, route: tuple[int, int, int], rows: Mapping[str, NDArray[np.int64]]
) -> dict[str, bytes]:
    """The keys of the masks of two clients: of what everybody sends, under ``, and of each table's common rows."""
    common = agree(secret, public)
    keys = {"": derive_key(common, salt=session, info=_info("mask", *route))}
    for name, at in rows.items():
        info = _info("mask", *route) + b"|table=" + name.encode() + b"|rows=" + rows_digest(at)
        keys[name] = derive_key(common, salt=session, info=info)
    return keys


def self_key(seed: bytes, session: bytes, round: int, client: int, table: str = "") -> bytes:
    """The key of a client's own mask."""
    info = _info("self", round, client) + (b"|table=" + table.encode() if table else b"")
    return derive_key(seed, salt=session, info=info)


def self_secret(number: int) -> bytes:
    """A secret of 32 bytes from its number.

    Raises:
        ProtocolError: the number has more: the shares were not of one secret.
    """
    try:
        return number.to_bytes(32, "little")
    except OverflowError:
        raise ProtocolError(
            "masked sum: shares must give back what was committed to, got another secret. Somebody sent wrong shares; "
            "nothing was opened."
        ) from None

"""The union of private sets: which rows anybody holds, and not who, nor how many.

Every client puts a random residue that is not zero at its rows, and zeros elsewhere; the masked sum is zero where
nobody holds a row. Notation: R residues, c holders of a row, m places of a filter, h places of a row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from partwise.channels.crypto import blocks_at, require
from partwise.channels.graphs import Complete, Graph
from partwise.channels.identities import Identities
from partwise.channels.opening import open_sum
from partwise.channels.protocol import FLOOR, NUMBERS, MaskLayout, Rules, Vector, digest, model_digest
from partwise.channels.ring import Ring
from partwise.channels.round import Plan
from partwise.channels.sealing import seal_sum
from partwise.core.aggregate import Sum
from partwise.core.channel import ClientSession, Opened, Seat, ServerSession
from partwise.core.errors import ProtocolError
from partwise.core.index import Rows, shapes_of
from partwise.core.model import Params
from partwise.core.population import Client
from partwise.core.update import Update

__all__ = ["Bitmap", "Bloom", "Filter", "FilterSize", "MaskedUnion", "bloom_size", "false_negatives", "false_positives"]

Ids = NDArray[np.int64]


class FilterSize(NamedTuple):
    """How large a filter is.

    Args:
        places: m.
        hashes: h.
    """

    places: int
    hashes: int


class Filter(Protocol):
    """Where a row's residues stand."""

    def size(self, rows: int) -> FilterSize:
        """Of a table with so many rows."""
        ...

    def at(self, ids: Ids, rows: int) -> Ids:
        """(r, h) places of some rows of a table with so many."""
        ...


@dataclass(frozen=True)
class Bitmap:
    """A place for every row there could be: no row too many, for tables of up to ten million rows or so."""

    def size(self, rows: int) -> FilterSize:
        return FilterSize(rows, 1)

    def at(self, ids: Ids, rows: int) -> Ids:
        return ids[:, None]


@dataclass(frozen=True)
class Bloom:
    """A Bloom filter: rows that nobody holds may be in the union, too; the message is as long as the union is large.

    Args:
        expected: how many rows the union of all clients will have, >= 1; not those of one client.
        false_positives: the share of the other rows that will be in it as well, in (0, 1).
    """

    expected: int
    false_positives: float = 0.01

    def __post_init__(self) -> None:
        if self.expected < 1 or not 0 < self.false_positives < 1:
            raise ValueError(
                f"Bloom(expected={self.expected}, false_positives={self.false_positives}): needs at least 1 row and a "
                "share in (0, 1). Size it for the union."
            )

    def size(self, rows: int) -> FilterSize:
        return bloom_size(self.expected, self.false_positives)

    def at(self, ids: Ids, rows: int) -> Ids:
        places, hashes = self.size(rows)
        # Two words of a fixed stream at the row's number: as good as two hashes of it.
        words = blocks_at(hashlib.sha256(b"partwise bloom").digest(), ids).view("<u8")  # (r, 2)
        first, step = words[:, :1], words[:, 1:] | np.uint64(1)
        found = (first + step * np.arange(hashes, dtype=np.uint64)) % np.uint64(places)
        at: Ids = found.astype(np.int64)
        return at


def bloom_size(expected: int, share: float) -> FilterSize:
    """m = ceil(-N ln f / (ln 2)²) places and h = round(m/N ln 2) hashes, for N rows and a share f of false positives.

    Example:
        >>> bloom_size(1000, 0.01)
        FilterSize(places=9586, hashes=7)
    """
    places = math.ceil(-expected * math.log(share) / math.log(2) ** 2)
    return FilterSize(places, max(1, round(places / expected * math.log(2))))


def false_positives(size: FilterSize, rows: int) -> float:
    """(1 - exp(-h N / m))^h: the chance that a row which nobody holds is in a union of N rows."""
    return float((1 - math.exp(-size.hashes * rows / size.places)) ** size.hashes)


def false_negatives(modulus: int, holders: int) -> float:
    """(1/R)(1 - (-1/(R-1))^(c-1)): the chance that residues of c holders add up to zero."""
    return (1 - (-1 / (modulus - 1)) ** (holders - 1)) / modulus


@dataclass(frozen=True)
class MaskedUnion:
    """The union of the rows that clients hold, by a masked sum of random residues.

    The server, and everybody it tells, learns the union. Not whose its rows are, nor how many hold one; but that
    somebody holds a row which no other client would have put there says much of that client.

    It is a channel: updates give their indices, of `Rows`, and the sum that is opened has the union as its index and no
    values.

    Args:
        filter: where the residues stand.
        bits: of a residue, in 8..64; a row is missed with a chance of about 2^-bits.
        min_contributors: so many must be in a union.
        graph: who masks with whom.
        identities: signing keys of the clients; None for a server that follows the protocol.
        patience_seconds: how long the server waits for the answers to a message.

    Source: Niu et al., "Billion-scale federated learning on mobile clients: a submodel design with tunable privacy",
        MobiCom 2020, arXiv:1911.02254, phase 1.
    Differs: residues are never zero, as those of the released code may be, which then misses rows of one holder, too.
    """

    filter: Filter = field(default_factory=Bitmap)
    bits: int = 32
    min_contributors: int = 5
    graph: Graph = field(default_factory=Complete)
    identities: Identities | None = None
    patience_seconds: float = 60.0
    reveals: ClassVar[Literal["sum", "each"]] = "sum"
    exchanges: ClassVar[bool] = True
    limit: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        require()
        if not 8 <= self.bits <= 64 or self.min_contributors < FLOOR or not self.patience_seconds > 0:
            raise ValueError(
                f"MaskedUnion(bits={self.bits}, min_contributors={self.min_contributors}, "
                f"patience_seconds={self.patience_seconds}): needs 8..64 bits, at least {FLOOR} contributors and a "
                "patience above 0. 32, 5 and 60 are usual."
            )
        if self.identities is not None and self.graph.is_server_drawn:
            raise ValueError(
                "MaskedUnion(identities=...): guards against a server that lies, got a graph that the server draws. "
                "Use graph=Complete()."
            )

    def _rules(self, params: Params) -> Rules:
        sizes = {name: tuple(t.shape) for name, t in params.items()}
        said = (self.filter, self.bits, self.min_contributors, self.graph, self.identities is not None, sizes)
        return Rules(self.graph, self.identities, self.min_contributors, digest(b"MaskedUnion 1", repr(said).encode()))

    def _layout(self, params: Params) -> MaskLayout:
        return MaskLayout(self.bits, sum(self.filter.size(len(t)).places for t in params.values()))

    def server(self, cohort: Sequence[Client], params: Params, session: int) -> ServerSession:
        layout = self._layout(params)
        summed = yield from open_sum(cohort, self._rules(params), _Fixed(layout), session)
        if int(summed.head[0]) != len(summed.clients):
            raise ProtocolError(
                f"masked union: each of {len(summed.clients)} clients adds 1 to be counted by, got "
                f"{int(summed.head[0])}. Somebody's masks did not cancel; nothing was opened."
            )
        rows, start = {}, 0
        for name, table in params.items():
            places = self.filter.size(len(table)).places
            is_set = summed.dense[start : start + places] != 0
            everything = np.arange(len(table))
            rows[name] = torch.from_numpy(everything[is_set[self.filter.at(everything, len(table))].all(1)])
            start += places
        count = len(summed.clients)
        union = Rows(shapes_of(params), rows)
        return Opened(Sum(union, {}, {}, float(count), count), summed.clients, {}, summed.refused)

    def client(self, update: Update, params: Params, seat: Seat) -> ClientSession:
        expected, ring = self._layout(params), Ring(self.bits)

        def prepare(layout: MaskLayout, holders: Mapping[str, Ids], asked: int) -> Vector:
            given = (layout.bits, layout.dense, layout.tables, layout.given)
            if given != (expected.bits, expected.dense, (), ()):
                raise ProtocolError(
                    f"client {seat.client} refuses: the filter has {expected.dense} places of {expected.bits} bits, "
                    f"got {layout.dense} of {layout.bits}. Client and server must build the same model."
                )
            head, words, start = np.zeros(NUMBERS, np.uint64), np.zeros(expected.dense, ring.dtype), 0
            for name, table in params.items():
                if name in update.index.shapes:
                    at = np.unique(self.filter.at(_rows(update, name), len(table)))
                    words[start + at] = ring.random(len(at))
                start += self.filter.size(len(table)).places
            head[0] = 1
            return Vector(head, words, {})

        yield from seal_sum(seat, self._rules(params), None, {}, prepare)


@dataclass(frozen=True, eq=False)
class _Fixed:
    """The same words for everybody, whatever they hold."""

    layout: MaskLayout

    def check(self, held: Any) -> None:
        if held is not None:
            raise ProtocolError("held: nobody says what it holds, got something. That is what the union is to hide.")

    def misfits(self, held: Mapping[Client, Any]) -> Mapping[Client, str]:
        return {}

    def plan(self, held: Mapping[Client, Any]) -> Plan:
        return Plan(self.layout, {}, model_digest(self.layout, {}))


def _rows(update: Update, name: str) -> Ids:
    width = math.prod(update.index.shapes[name][1:])
    rows: Ids = update.index.coords(name).numpy()[::width] // width
    return rows

"""The server's side of a masked sum: taking the masks off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from partwise.channels.crypto import is_equal, public_of
from partwise.channels.frames import (
    MASK_KEY,
    SELF_MASK,
    MaskedWords,
    read_consistency,
    read_masked,
    read_shares,
    read_unmasked,
)
from partwise.channels.protocol import (
    NUMBERS,
    MaskBegin,
    MaskSigned,
    Rules,
    digest,
    pair_keys,
    point,
    self_key,
    self_secret,
)
from partwise.channels.ring import Ring
from partwise.channels.round import Answers, Exchange, Planner, Round, RowIds, Summed
from partwise.channels.shamir import combine, weights_at_zero
from partwise.channels.streams import Mask, Words, add_masks_, row_masks
from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["open_sum"]

_Tables = Mapping[str, tuple[RowIds, Words]]


def open_sum(cohort: Sequence[Client], rules: Rules, planner: Planner, session: int) -> Exchange:
    """Ask for one masked sum.

    Args:
        cohort: whom to ask.
        rules: what was agreed beforehand.
        planner: what is summed.
        session: number of the exchange.

    Yields:
        Client -> message; takes client -> answer, of those that answered.

    Returns:
        The sum over those whose masked words came.

    Raises:
        ProtocolError: too few were left at some step, or shares were wrong: nothing was opened.
    """
    it = Round(rules, session)
    it.enough(cohort, "asked")
    hello = yield {c: MaskBegin(session) for c in cohort}
    it.meet(hello, planner)
    shares = yield it.introduce()
    opening = _Opening(it)
    opening.collect(shares)
    masked = yield it.deliver()
    vectors = opening.words(masked)
    if rules.is_active:
        signed = yield it.survivors()
        answers = yield opening.signatures(signed)
    else:
        answers = yield it.survivors()
    opening.shares(answers)
    return opening.total(vectors)


class _Opening:
    """What the server needs to take masks off."""

    def __init__(self, it: Round) -> None:
        self._it = it
        self._commitments: dict[Client, bytes] = {}
        self._opened: dict[tuple[Client, int], dict[int, bytes]] = {}  # whose, and the kind -> point -> share

    def collect(self, answers: Answers) -> None:
        number = self._it.number
        found = self._it.each(
            answers, lambda client, answer: read_shares(answer, number, client, self._it.known[client].neighbours)
        )
        self._commitments = {client: shares.commitment for client, shares in found.items()}
        self._it.shares({client: shares.sealed for client, shares in found.items()})

    def words(self, answers: Answers) -> dict[Client, MaskedWords]:
        layout, number = self._it.plan.layout, self._it.number
        ring = Ring(layout.bits)

        def read(client: Client, answer: Any) -> MaskedWords:
            count = layout.dense + sum(width * len(self._rows(name, client)) for name, width in layout.tables)
            return read_masked(answer, number, client, (ring.bits, count, ring.packed_bytes(count)))

        found = self._it.each(answers, read)
        self._it.words(found)
        return found

    def _rows(self, name: str, client: Client) -> RowIds:
        rows: RowIds = self._it.plan.rows[name].get(client, np.zeros(0, np.int64))
        return rows

    def signatures(self, answers: Answers) -> dict[Client, MaskSigned]:
        found = self._it.each(answers, lambda client, answer: read_consistency(answer, self._it.number, client))
        self._it.enough(found, "signed who is left", is_summed=False)
        signed = MaskSigned(tuple(found), tuple(s.signature for s in found.values()))
        return dict.fromkeys(found, signed)

    def shares(self, answers: Answers) -> None:
        here, shared = set(self._it.here), set(self._it.shared)

        def read(client: Client, answer: Any) -> Any:
            near = {*self._it.known[client].neighbours, client} & shared
            kinds = {c: SELF_MASK if c in here else MASK_KEY for c in near}
            return read_unmasked(answer, self._it.number, client, kinds)

        found = self._it.each(answers, read)
        self._it.enough(found, "sent shares of the masks", is_summed=False)
        for client, unmasked in found.items():
            for whose, (kind, share) in unmasked.shares.items():
                self._opened.setdefault((whose, kind), {})[point(client)] = share

    def total(self, vectors: Mapping[Client, MaskedWords]) -> Summed:
        """Take off what is left of the masks."""
        layout = self._it.plan.layout
        ring = Ring(layout.bits)
        head, dense = np.zeros(NUMBERS, np.uint64), np.zeros(layout.dense, ring.dtype)
        seeds, keys = self._secrets()
        tables = self._empty_tables(ring)
        for client, vector in vectors.items():
            head += np.frombuffer(vector.head, "<u8")
            words = ring.unpack(vector.words, vector.number)
            dense += words[: layout.dense]
            self._add_rows_(tables, client, words[layout.dense :], seeds[client])
        masks = [Mask(self_key(seed, self._it.session, self._it.number, c), -1) for c, seed in seeds.items()]
        for lost, secret in keys.items():
            near = [client for client in self._it.known[lost].neighbours if client in seeds]
            masks += [self._take_off_(tables, (lost, client), secret) for client in near]
        add_masks_([head, dense], masks)
        found = {name: (rows, ring.reduced(words)) for name, (rows, words) in tables.items()}
        withheld = sum(vector.withheld for vector in vectors.values())
        return Summed(head, ring.reduced(dense), found, self._it.plan, tuple(vectors), self._it.refused, withheld)

    def _empty_tables(self, ring: Ring) -> dict[str, tuple[RowIds, Words]]:
        found = {}
        for name, width in self._it.plan.layout.tables:
            rows = [self._rows(name, client) for client in self._it.here]
            union = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
            found[name] = union, np.zeros((len(union), width), ring.dtype)
        return found

    def _add_rows_(self, tables: _Tables, client: Client, words: Words, seed: bytes) -> None:
        """Add a client's own rows, without its self mask."""
        for name, (union, total) in tables.items():
            rows, width = self._rows(name, client), total.shape[1]
            own, words = words[: len(rows) * width].reshape(-1, width), words[len(rows) * width :]
            key = self_key(seed, self._it.session, self._it.number, client, name)
            at = np.searchsorted(union, rows)
            total[at] = total[at] + own - row_masks(key, rows, width, total.dtype)

    def _take_off_(self, tables: _Tables, pair: tuple[Client, Client], secret: bytes) -> Mask:
        """What a lost client's mask has left in the words of one that stayed; of its rows it is taken off here."""
        lost, client = pair
        common, public = self._it.common(lost, client), self._it.known[client].advertised.mask_key
        keys = pair_keys(secret, public, self._it.session, (self._it.number, lost, client), common)
        for name, rows in common.items():
            union, total = tables[name]
            at, words = np.searchsorted(union, rows), row_masks(keys[name], rows, total.shape[1], total.dtype)
            total[at] = total[at] - words if client < lost else total[at] + words
        return Mask(keys[""], -1 if client < lost else 1)

    def _secrets(self) -> tuple[dict[Client, bytes], dict[Client, bytes]]:
        """Seeds of the self masks of those who stayed, and mask keys of those who were lost."""
        here, weights = set(self._it.here), dict[tuple[int, ...], dict[int, int]]()
        seeds, keys = {}, {}
        for client in self._it.shared:
            kind = SELF_MASK if client in here else MASK_KEY
            if kind == MASK_KEY and not here & set(self._it.known[client].neighbours):
                continue  # nobody has masked with it
            secret = self._combined(client, kind, weights)
            known = self._it.known[client]
            if kind == SELF_MASK and is_equal(digest(b"b", secret), self._commitments[client]):
                seeds[client] = secret
            elif kind == MASK_KEY and is_equal(public_of(secret), known.advertised.mask_key):
                keys[client] = secret
            else:
                raise ProtocolError(
                    f"masked sum {self._it.number}: the shares of client {client} must give back what was committed "
                    "to, got another secret. Somebody sent wrong shares; nothing was opened."
                )
        return seeds, keys

    def _combined(self, client: Client, kind: int, weights: dict[tuple[int, ...], dict[int, int]]) -> bytes:
        shares = self._opened.get((client, kind), {})
        points = tuple(sorted(shares)[: self._it.threshold])
        if len(points) < self._it.threshold:
            raise ProtocolError(
                f"masked sum {self._it.number}: needs {self._it.threshold} shares of client {client}, got "
                f"{len(points)}. Too many clients were lost; nothing was opened."
            )
        if points not in weights:
            weights[points] = dict(zip(points, weights_at_zero(points), strict=True))
        return self_secret(combine(shares, self._it.threshold, weights[points]))

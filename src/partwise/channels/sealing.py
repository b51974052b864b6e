"""The client's side of a masked sum: what it hides its words by, and what shares of that it gives away."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from partwise.channels.crypto import KEY_BYTES, seal, unseal, verify
from partwise.channels.frames import (
    MASK_KEY,
    SELF_MASK,
    Consistency,
    MaskedWords,
    Sealed,
    SharesSent,
    Unmasked,
    pack_share,
    read_share,
)
from partwise.channels.member import Holders, Member
from partwise.channels.protocol import (
    MaskHello,
    MaskLayout,
    MaskSigned,
    Rules,
    Vector,
    digest,
    pair_keys,
    point,
    self_key,
    survivors_text,
)
from partwise.channels.ring import Ring
from partwise.channels.shamir import split
from partwise.channels.streams import Mask, add_masks_, row_masks
from partwise.core.channel import Seat
from partwise.core.errors import ProtocolError

__all__ = ["Prepare", "seal_sum"]

Prepare = Callable[[MaskLayout, Holders, int], Vector]


def seal_sum(seat: Seat, rules: Rules, held: Any, rows: Holders, prepare: Prepare) -> Generator[Any, Any, None]:
    """Take part in one masked sum.

    Args:
        seat: what the client knows.
        rules: what was agreed beforehand.
        held: what the server may know of what the client holds.
        rows: table -> the client's rows, (r,) int64 ascending, of which it sends no others.
        prepare: the client's words, for a layout, how many clients hold each of its rows, table by table and itself
            counted, and how many clients have sent keys; it refuses a layout that is not as it should be.

    Yields:
        Its answers to the server's messages.

    Raises:
        ProtocolError: the server asks for what it must not have.
    """
    it = Member(seat, rules, rows)
    begin = yield
    it.begin(begin)
    said = yield MaskHello(it.advertise(), held)
    it.meet(said)
    masking = _Masking(it)
    delivered = yield masking.share()
    it.receive(delivered)
    survivors = yield masking.mask(prepare)
    it.hear_of(survivors)
    if rules.is_active:
        signed = yield masking.vouch()
        masking.check_signed(signed)
    yield masking.unmask()
    raise it.refusal("at most one kind of share is given for each client, ever", "another question", "It is over")


class _Masking:
    """What a client hides, and gives shares of; forgotten at the end of the exchange, seeds and shares with it."""

    def __init__(self, it: Member) -> None:
        self._it = it
        self._seed = os.urandom(KEY_BYTES)
        self._own_shares = b"", b""  # of the mask key, and of the self mask

    def share(self) -> bytes:
        others = [c for c in self._it.peers if c != self._it.me]
        holders = list(self._it.peers) if self._it.rules.graph.keeps_own else others
        hidden = [int.from_bytes(secret, "little") for secret in (self._it.for_masks.secret, self._seed)]
        of_key, of_seed = split(hidden, self._it.threshold, [point(c) for c in holders])
        sealed = {}
        for client, one, other in zip(holders, of_key, of_seed, strict=True):
            if client == self._it.me:
                self._own_shares = one, other
                continue
            text = pack_share((self._it.me, client, self._it.round), one, other)
            sealed[client] = Sealed(*seal(self._it.share_key(client), text, self._it.session))
        return SharesSent(digest(b"b", self._seed), sealed).pack(self._it.round, self._it.me)

    def mask(self, prepare: Prepare) -> bytes:
        vector = prepare(self._it.layout, self._holders(), self._it.asked)
        self._it.seat.memory["sealed"] = self._it.seat.reply  # from here on, whatever becomes of the exchange
        ring = Ring(self._it.layout.bits)
        self._add_masks_(vector, ring)
        words = np.concatenate([vector.dense, *(block.reshape(-1) for _, block in vector.tables.values())])
        head = vector.head.astype("<u8").tobytes()
        message = MaskedWords(vector.withheld, ring.bits, len(words), head, ring.pack(words))
        return message.pack(self._it.round, self._it.me)

    def _holders(self) -> Holders:
        """Table -> how many in U2 hold each of its rows."""
        found = {}
        for name, mine in self._it.rows.items():
            counts = np.ones(len(mine), np.int64)
            for client in self._it.among - {self._it.me}:
                at = self._it.peers[client].rows.get(name)
                if at is not None:
                    counts[np.searchsorted(mine, at)] += 1
            found[name] = counts
        return found

    def _add_masks_(self, vector: Vector, ring: Ring) -> None:
        me, session = self._it.me, self._it.session
        masks = [Mask(self_key(self._seed, session, self._it.round, me), 1)]
        for name, (rows, block) in vector.tables.items():
            block += row_masks(
                self_key(self._seed, session, self._it.round, me, name), rows, block.shape[1], ring.dtype
            )
        for client in sorted(self._it.among - {me}):
            peer, sign = self._it.peers[client], 1 if me < client else -1
            route = (self._it.round, me, client)
            keys = pair_keys(self._it.for_masks.secret, peer.mask_key, session, route, peer.rows)
            masks.append(Mask(keys[""], sign))
            for name, at in peer.rows.items():
                rows, block = vector.tables[name]
                words = row_masks(keys[name], at, block.shape[1], ring.dtype)
                where = np.searchsorted(rows, at)
                block[where] = block[where] + words if sign > 0 else block[where] - words
        add_masks_([vector.head, vector.dense], masks)

    def vouch(self) -> bytes:
        """Sign who is left."""
        identities = self._it.rules.identities
        assert identities is not None
        text = survivors_text(self._it.session, self._it.alive)
        return Consistency(text, identities.sign(self._it.me, text)).pack(self._it.round, self._it.me)

    def check_signed(self, said: Any) -> None:
        self._it.check(said, MaskSigned)
        identities = self._it.rules.identities
        assert identities is not None
        clients = self._it.ascending(said.clients)
        text = survivors_text(self._it.session, self._it.alive)
        pairs = zip(clients, said.signatures, strict=False)
        good = sum(c in self._it.alive and verify(identities.key_of(c), text, s) for c, s in pairs)
        if good < self._it.threshold:
            raise self._it.refusal(
                f"{self._it.threshold} clients sign the same survivors, model and keys",
                f"{good}", "Tell all clients the same"
            )  # fmt: skip

    def unmask(self) -> bytes:
        """Shares of the self masks of the living, and of the mask keys of the lost."""
        shares = {}
        for clients, kind in ((self._it.alive, SELF_MASK), (self._it.lost, MASK_KEY)):
            for client in clients:
                found = self._opened(client)
                if found is not None:
                    shares[client] = (kind, found[1] if kind == SELF_MASK else found[0])
        return Unmasked(shares).pack(self._it.round, self._it.me)

    def _opened(self, client: int) -> tuple[bytes, bytes] | None:
        """A share of another's mask key and one of its self mask; None for what does not open: it is left out."""
        if client == self._it.me:
            return self._own_shares if self._it.rules.graph.keeps_own else None
        nonce, text = self._it.sealed[client]
        try:
            plain = unseal(self._it.share_key(client), nonce, text, self._it.session)
            return read_share(plain, (client, self._it.me, self._it.round))
        except ProtocolError:
            return None

"""The client's side of a masked sum. It trusts the server with nothing that it can check."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import KEY_BYTES, is_equal, key_pair, seal, unseal, verify
from partwise.channels.frames import (
    MASK_KEY,
    SELF_MASK,
    Advertised,
    Consistency,
    MaskedWords,
    Sealed,
    SharesSent,
    Unmasked,
    pack_share,
    read_advertised,
    read_share,
)
from partwise.channels.protocol import (
    FLOOR,
    MaskBegin,
    MaskDelivered,
    MaskHello,
    MaskLayout,
    MaskNeighbours,
    MaskSigned,
    MaskSurvivors,
    Rules,
    Vector,
    advertisement,
    digest,
    is_well_formed,
    model_digest,
    pair_keys,
    point,
    self_key,
    session_of,
    share_key,
    survivors_text,
)
from partwise.channels.ring import Ring
from partwise.channels.shamir import split
from partwise.channels.streams import Mask, add_masks_, row_masks
from partwise.core.channel import Seat
from partwise.core.errors import ProtocolError

__all__ = ["Holders", "Prepare", "seal_sum"]

Holders = Mapping[str, NDArray[np.int64]]
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
    it = _Member(seat, rules, rows)
    begin = yield
    it.begin(begin)
    said = yield MaskHello(it.advertise(), held)
    it.meet(said)
    delivered = yield it.share()
    it.receive(delivered)
    survivors = yield it.mask(prepare)
    it.hear_of(survivors)
    if rules.is_active:
        signed = yield it.vouch()
        it.check_signed(signed)
    yield it.unmask()
    raise it.refusal("at most one kind of share is given for each client, ever", "another question", "It is over")


@dataclass(frozen=True)
class _Peer:
    """What another client says of itself."""

    share_key: bytes
    mask_key: bytes
    rows: Holders


class _Member:
    """A client in one exchange; forgotten at its end, keys, seeds and shares with it."""

    def __init__(self, seat: Seat, rules: Rules, rows: Holders) -> None:
        self._seat, self._rules, self._rows = seat, rules, rows
        self._me, self._round = seat.client, seat.session
        self._for_shares, self._for_masks = key_pair(), key_pair()
        self._seed = os.urandom(KEY_BYTES)
        self._session = self._advertised = b""
        self._layout = MaskLayout(1, 0)
        self._peers: dict[int, _Peer] = {}
        self._threshold = self._asked = self._total = 0
        self._own_shares = b"", b""  # of the mask key, and of the self mask
        self._sealed: dict[int, Sealed] = {}
        self._among: set[int] = set()  # U2, as far as it is known here, and oneself
        self._alive: tuple[int, ...] = ()
        self._lost: tuple[int, ...] = ()

    def refusal(self, rule: str, got: object, remedy: str) -> ProtocolError:
        """What the client says instead of what it was asked for."""
        return ProtocolError(f"client {self._me} refuses: {rule}, got {got}. {remedy}.")

    def _check(self, message: Any, kind: type) -> None:
        """Refuse a message of another kind, or with fields of other kinds."""
        if type(message) is not kind:
            raise self.refusal(f"{kind.__name__} comes next", type(message).__name__, "Follow the protocol")
        if not is_well_formed(message):
            raise self.refusal(f"{kind.__name__} has fields of their kinds", "others", "Follow the protocol")

    # 0: keys

    def begin(self, said: Any) -> None:
        self._check(said, MaskBegin)
        memory, reply = self._seat.memory, self._seat.reply
        if said.session != self._round or self._round <= memory.get("session", -1):
            raise self.refusal(
                f"exchanges are numbered upward, and the last one was {memory.get('session')}",
                f"{said.session} again" if said.session == self._round else f"{said.session} for {self._round}",
                "A round is never replayed; begin a new one",
            )
        if reply <= memory.get("sealed", -1):
            raise self.refusal(
                "an update is sealed once", f"another exchange about reply {reply}", "Two sums tell their difference"
            )
        memory["session"] = self._round

    def advertise(self) -> bytes:
        keys = Advertised(self._for_shares.public, self._for_masks.public)
        if (identities := self._rules.identities) is not None:
            text = advertisement(self._round, self._me, self._rules.config, keys.share_key + keys.mask_key)
            keys = keys._replace(signature=identities.sign(self._me, text))
        self._advertised = keys.pack(self._round, self._me)
        return self._advertised

    # 1: shares

    def meet(self, said: Any) -> None:
        """Check whom it is to mask with."""
        self._check(said, MaskNeighbours)
        rules, me = self._rules, self._me
        clients = self._clients(said.clients)
        least = max(FLOOR, rules.min_contributors)
        if said.total < least:
            raise self.refusal(f"at least {least} clients must be in a sum", said.total, "Ask a larger cohort")
        degree = rules.graph.degree(said.total, is_active=rules.is_active)
        self._threshold, self._asked, self._total = degree.threshold, said.total, said.total
        if len(clients) != degree.neighbours + 1 or me not in clients or len(said.keys) != len(clients):
            raise self.refusal(
                f"of {said.total} clients, {degree.neighbours} and oneself are one's neighbours",
                f"{len(clients)} clients and {len(said.keys)} keys", "Name all of them"
            )  # fmt: skip
        self._peers = {c: self._met(c, packed, said) for c, packed in zip(clients, said.keys, strict=True)}
        if not is_equal(said.keys[clients.index(me)], self._advertised):
            raise self.refusal("its own keys are unchanged", "others", "Send the list as it came")
        public = [key for peer in self._peers.values() for key in (peer.share_key, peer.mask_key)]
        if len(set(public)) < len(public):
            raise self.refusal("all keys are distinct", "one of them twice", "No client may stand for two")
        if not rules.graph.is_server_drawn and not is_equal(said.all_keys, digest(*said.keys)):
            raise self.refusal("the digest is that of all keys", "another", "Send all clients the same list")
        model = model_digest(said.layout, self._seat.given)
        self._session = session_of(self._round, model, rules, said)
        self._layout = said.layout

    def _met(self, client: int, packed: bytes, said: MaskNeighbours) -> _Peer:
        rules = self._rules
        keys = read_advertised(packed, self._round, client, is_signed=rules.is_active)
        if rules.identities is not None:
            text = advertisement(self._round, client, rules.config, keys.share_key + keys.mask_key)
            if not verify(rules.identities.key_of(client), text, keys.signature):
                raise self.refusal(
                    "keys are signed by whose they are", f"keys of client {client} that are not", "Do not change them"
                )
        rows: dict[str, Any] = dict(said.common.get(client, {})) if client != self._me else {}
        for name, at in rows.items():
            mine = self._rows.get(name)
            if mine is None or not isinstance(at, np.ndarray) or at.dtype != np.int64 or not np.isin(at, mine).all():
                raise self.refusal(
                    f"the rows of {name!r} that client {client} holds as well are its own", "others", "Send the overlap"
                )
        return _Peer(keys.share_key, keys.mask_key, rows)

    def _clients(self, clients: tuple[int, ...]) -> tuple[int, ...]:
        if list(clients) != sorted(set(clients)):
            raise self.refusal("a list of clients ascends and none comes twice", "another", "Sort it")
        return clients

    def share(self) -> bytes:
        others = [c for c in self._peers if c != self._me]
        holders = list(self._peers) if self._rules.graph.keeps_own else others
        hidden = [int.from_bytes(secret, "little") for secret in (self._for_masks.secret, self._seed)]
        of_key, of_seed = split(hidden, self._threshold, [point(c) for c in holders])
        sealed = {}
        for client, one, other in zip(holders, of_key, of_seed, strict=True):
            if client == self._me:
                self._own_shares = one, other
                continue
            text = pack_share((self._me, client, self._round), one, other)
            sealed[client] = Sealed(*seal(self._share_key(client), text, self._session))
        return SharesSent(digest(b"b", self._seed), sealed).pack(self._round, self._me)

    def _share_key(self, client: int) -> bytes:
        route = (self._round, self._me, client)
        return share_key(self._for_shares.secret, self._peers[client].share_key, self._session, route)

    # 2: masked words

    def receive(self, said: Any) -> None:
        self._check(said, MaskDelivered)
        sources = self._clients(said.sources)
        self._among = {*sources, self._me}
        strangers = set(sources) - (self._peers.keys() - {self._me})
        if strangers or len(said.sealed) != len(sources):
            raise self.refusal("shares come from its neighbours", sorted(strangers), "Deliver what was sent")
        self._sealed = {c: Sealed(*pair) for c, pair in zip(sources, said.sealed, strict=True)}
        least = max(FLOOR, self._rules.min_contributors)
        held = len(self._among) - (not self._rules.graph.keeps_own)
        if said.total > self._total or said.total < least or held < self._threshold:
            raise self.refusal(
                f"of {self._total} clients, {least} must be in the sum and {self._threshold} hold its shares",
                f"{said.total} and {held}", "Too many were lost; begin anew"
            )  # fmt: skip
        self._total = said.total

    def mask(self, prepare: Prepare) -> bytes:
        vector = prepare(self._layout, self._holders(), self._asked)
        self._seat.memory["sealed"] = self._seat.reply  # from here on, whatever becomes of the exchange
        ring = Ring(self._layout.bits)
        self._add_masks_(vector, ring)
        words = np.concatenate([vector.dense, *(block.reshape(-1) for _, block in vector.tables.values())])
        head = vector.head.astype("<u8").tobytes()
        message = MaskedWords(vector.withheld, ring.bits, len(words), head, ring.pack(words))
        return message.pack(self._round, self._me)

    def _holders(self) -> Holders:
        """Table -> how many in U2 hold each of its rows."""
        found = {}
        for name, mine in self._rows.items():
            counts = np.ones(len(mine), np.int64)
            for client in self._among - {self._me}:
                at = self._peers[client].rows.get(name)
                if at is not None:
                    counts[np.searchsorted(mine, at)] += 1
            found[name] = counts
        return found

    def _add_masks_(self, vector: Vector, ring: Ring) -> None:
        me, session = self._me, self._session
        masks = [Mask(self_key(self._seed, session, self._round, me), 1)]
        for name, (rows, block) in vector.tables.items():
            block += row_masks(self_key(self._seed, session, self._round, me, name), rows, block.shape[1], ring.dtype)
        for client in sorted(self._among - {me}):
            peer, sign = self._peers[client], 1 if me < client else -1
            route = (self._round, me, client)
            keys = pair_keys(self._for_masks.secret, peer.mask_key, session, route, peer.rows)
            masks.append(Mask(keys[""], sign))
            for name, at in peer.rows.items():
                rows, block = vector.tables[name]
                words = row_masks(keys[name], at, block.shape[1], ring.dtype)
                where = np.searchsorted(rows, at)
                block[where] = block[where] + words if sign > 0 else block[where] - words
        add_masks_([vector.head, vector.dense], masks)

    # 3 and 4: who is left, and shares

    def hear_of(self, said: Any) -> None:
        self._check(said, MaskSurvivors)
        alive, lost = self._clients(said.alive), self._clients(said.lost)
        both = sorted(set(alive) & set(lost))
        if both:
            raise self.refusal(
                "at most one kind of share is given for each client, ever",
                f"clients {both} among the living and the lost", "With both, an update lies open",
            )  # fmt: skip
        if {*alive, *lost} != self._among or self._me not in alive:
            raise self.refusal(
                "the living and the lost are those it has masked with",
                f"{len(alive) + len(lost)} of {len(self._among)}, or others", "Leave nobody out",
            )  # fmt: skip
        least = max(FLOOR, self._rules.min_contributors)
        held = len(alive) - (not self._rules.graph.keeps_own)
        if said.total > self._total or said.total < max(least, len(alive)) or held < self._threshold:
            raise self.refusal(
                f"of {self._total} clients, {least} must be in the sum and {self._threshold} hold its shares",
                f"{said.total} and {held}", "Too many were lost; begin anew"
            )  # fmt: skip
        self._alive, self._lost = alive, lost

    def vouch(self) -> bytes:
        """Sign who is left."""
        identities = self._rules.identities
        assert identities is not None
        text = survivors_text(self._session, self._alive)
        return Consistency(text, identities.sign(self._me, text)).pack(self._round, self._me)

    def check_signed(self, said: Any) -> None:
        self._check(said, MaskSigned)
        identities = self._rules.identities
        assert identities is not None
        clients = self._clients(said.clients)
        text = survivors_text(self._session, self._alive)
        pairs = zip(clients, said.signatures, strict=False)
        good = sum(c in self._alive and verify(identities.key_of(c), text, s) for c, s in pairs)
        if good < self._threshold:
            raise self.refusal(
                f"{self._threshold} clients sign the same survivors, model and keys",
                f"{good}", "Tell all clients the same"
            )  # fmt: skip

    def unmask(self) -> bytes:
        """Shares of the self masks of the living, and of the mask keys of the lost."""
        shares = {}
        for clients, kind in ((self._alive, SELF_MASK), (self._lost, MASK_KEY)):
            for client in clients:
                found = self._opened(client)
                if found is not None:
                    shares[client] = (kind, found[1] if kind == SELF_MASK else found[0])
        return Unmasked(shares).pack(self._round, self._me)

    def _opened(self, client: int) -> tuple[bytes, bytes] | None:
        """A share of another's mask key and one of its self mask; None for what does not open: it is left out."""
        if client == self._me:
            return self._own_shares if self._rules.graph.keeps_own else None
        nonce, text = self._sealed[client]
        try:
            plain = unseal(self._share_key(client), nonce, text, self._session)
            return read_share(plain, (client, self._me, self._round))
        except ProtocolError:
            return None

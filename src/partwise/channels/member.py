"""A client in one exchange of a masked sum, as far as every such protocol goes: its keys, and what it checks.

It trusts the server with nothing that it can check.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import is_equal, key_pair, verify
from partwise.channels.frames import Advertised, Sealed, read_advertised
from partwise.channels.protocol import (
    FLOOR,
    MaskBegin,
    MaskDelivered,
    MaskLayout,
    MaskNeighbours,
    MaskSurvivors,
    Rules,
    advertisement,
    digest,
    is_well_formed,
    model_digest,
    session_of,
    share_key,
)
from partwise.core.channel import Seat
from partwise.core.errors import ProtocolError

__all__ = ["Holders", "Member", "Peer"]

Holders = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Peer:
    """What another client says of itself."""

    share_key: bytes
    mask_key: bytes
    rows: Holders


class Member:
    """What a client keeps and checks; forgotten at the end of the exchange, keys with it.

    Args:
        seat: what the client knows.
        rules: what was agreed beforehand.
        rows: table -> the client's rows, (r,) int64 ascending, of which it sends no others.
    """

    def __init__(self, seat: Seat, rules: Rules, rows: Holders) -> None:
        self.seat, self.rules, self.rows = seat, rules, rows
        self.me, self.round = seat.client, seat.session
        self.for_shares, self.for_masks = key_pair(), key_pair()
        self.session = self._advertised = b""
        self.layout = MaskLayout(1, 0)
        self.peers: dict[int, Peer] = {}
        self.threshold = self.asked = self._total = 0
        self.sealed: dict[int, Sealed] = {}
        self._share_keys: dict[int, bytes] = {}
        self.among: set[int] = set()  # U2, as far as it is known here, and oneself
        self.alive: tuple[int, ...] = ()
        self.lost: tuple[int, ...] = ()

    def refusal(self, rule: str, got: object, remedy: str) -> ProtocolError:
        """What the client says instead of what it was asked for."""
        return ProtocolError(f"client {self.me} refuses: {rule}, got {got}. {remedy}.")

    def check(self, message: Any, kind: type) -> None:
        """Refuse a message of another kind, or with fields of other kinds."""
        if type(message) is not kind:
            raise self.refusal(f"{kind.__name__} comes next", type(message).__name__, "Follow the protocol")
        if not is_well_formed(message):
            raise self.refusal(f"{kind.__name__} has fields of their kinds", "others", "Follow the protocol")

    # 0: keys

    def begin(self, said: Any) -> None:
        """Refuse a round, or an update, that was there before."""
        self.check(said, MaskBegin)
        memory, reply = self.seat.memory, self.seat.reply
        if said.session != self.round or self.round <= memory.get("session", -1):
            raise self.refusal(
                f"exchanges are numbered upward, and the last one was {memory.get('session')}",
                f"{said.session} again" if said.session == self.round else f"{said.session} for {self.round}",
                "A round is never replayed; begin a new one",
            )
        if reply <= memory.get("sealed", -1):
            raise self.refusal(
                "an update is sealed once", f"another exchange about reply {reply}", "Two sums tell their difference"
            )
        memory["session"] = self.round

    def advertise(self) -> bytes:
        """Its public keys, packed."""
        keys = Advertised(self.for_shares.public, self.for_masks.public)
        if (identities := self.rules.identities) is not None:
            text = advertisement(self.round, self.me, self.rules.config, keys.share_key + keys.mask_key)
            keys = keys._replace(signature=identities.sign(self.me, text))
        self._advertised = keys.pack(self.round, self.me)
        return self._advertised

    # 1: whom it sums with

    def meet(self, said: Any) -> None:
        """Check whom it is to mask with."""
        self.check(said, MaskNeighbours)
        rules, me = self.rules, self.me
        clients = self.ascending(said.clients)
        least = max(FLOOR, rules.min_contributors)
        if said.total < least:
            raise self.refusal(f"at least {least} clients must be in a sum", said.total, "Ask a larger cohort")
        degree = rules.graph.degree(said.total, is_active=rules.is_active)
        self.threshold, self.asked, self._total = degree.threshold, said.total, said.total
        if len(clients) != degree.neighbours + 1 or me not in clients or len(said.keys) != len(clients):
            raise self.refusal(
                f"of {said.total} clients, {degree.neighbours} and oneself are one's neighbours",
                f"{len(clients)} clients and {len(said.keys)} keys", "Name all of them"
            )  # fmt: skip
        self.peers = {c: self._met(c, packed, said) for c, packed in zip(clients, said.keys, strict=True)}
        if not is_equal(said.keys[clients.index(me)], self._advertised):
            raise self.refusal("its own keys are unchanged", "others", "Send the list as it came")
        public = [key for peer in self.peers.values() for key in (peer.share_key, peer.mask_key)]
        if len(set(public)) < len(public):
            raise self.refusal("all keys are distinct", "one of them twice", "No client may stand for two")
        if not rules.graph.is_server_drawn and not is_equal(said.all_keys, digest(*said.keys)):
            raise self.refusal("the digest is that of all keys", "another", "Send all clients the same list")
        model = model_digest(said.layout, self.seat.given)
        self.session = session_of(self.round, model, rules, said)
        self.layout = said.layout

    def _met(self, client: int, packed: bytes, said: MaskNeighbours) -> Peer:
        rules = self.rules
        keys = read_advertised(packed, self.round, client, is_signed=rules.is_active)
        if rules.identities is not None:
            text = advertisement(self.round, client, rules.config, keys.share_key + keys.mask_key)
            if not verify(rules.identities.key_of(client), text, keys.signature):
                raise self.refusal(
                    "keys are signed by whose they are", f"keys of client {client} that are not", "Do not change them"
                )
        rows: dict[str, Any] = dict(said.common.get(client, {})) if client != self.me else {}
        for name, at in rows.items():
            mine = self.rows.get(name)
            if mine is None or not isinstance(at, np.ndarray) or at.dtype != np.int64 or not np.isin(at, mine).all():
                raise self.refusal(
                    f"the rows of {name!r} that client {client} holds as well are its own", "others", "Send the overlap"
                )
        return Peer(keys.share_key, keys.mask_key, rows)

    def ascending(self, clients: tuple[int, ...]) -> tuple[int, ...]:
        """Refuse a list that does not ascend."""
        if list(clients) != sorted(set(clients)):
            raise self.refusal("a list of clients ascends and none comes twice", "another", "Sort it")
        return clients

    def share_key(self, client: int) -> bytes:
        """Under which shares go from one of two to the other: the same there and back, so agreed on once."""
        if client not in self._share_keys:
            route, public = (self.round, self.me, client), self.peers[client].share_key
            self._share_keys[client] = share_key(self.for_shares.secret, public, self.session, route)
        return self._share_keys[client]

    # 2 and 3: shares, and who is left

    def receive(self, said: Any) -> None:
        """Check whose shares came."""
        self.check(said, MaskDelivered)
        sources = self.ascending(said.sources)
        self.among = {*sources, self.me}
        strangers = set(sources) - (self.peers.keys() - {self.me})
        if strangers or len(said.sealed) != len(sources):
            raise self.refusal("shares come from its neighbours", sorted(strangers), "Deliver what was sent")
        self.sealed = {c: Sealed(*pair) for c, pair in zip(sources, said.sealed, strict=True)}
        least = max(FLOOR, self.rules.min_contributors)
        held = len(self.among) - (not self.rules.graph.keeps_own)
        total = self._counted(said.total, self.among)
        if said.total > self._total or total < least or held < self.threshold:
            raise self.refusal(
                f"of {self._total} clients, {least} must be in the sum and {self.threshold} hold its shares",
                f"{total} and {held}", "Too many were lost; begin anew"
            )  # fmt: skip
        self._total = said.total

    def _counted(self, said: int, named: Collection[int]) -> int:
        """How many are in the sum: who knows all of them by name counts, whatever the server says."""
        return said if self.rules.graph.is_server_drawn else min(said, len(named))

    def hear_of(self, said: Any) -> None:
        """Check who is said to be left."""
        self.check(said, MaskSurvivors)
        alive, lost = self.ascending(said.alive), self.ascending(said.lost)
        both = sorted(set(alive) & set(lost))
        if both:
            raise self.refusal(
                "at most one kind of share is given for each client, ever",
                f"clients {both} among the living and the lost", "With both, an update lies open",
            )  # fmt: skip
        if {*alive, *lost} != self.among or self.me not in alive:
            raise self.refusal(
                "the living and the lost are those it has masked with",
                f"{len(alive) + len(lost)} of {len(self.among)}, or others", "Leave nobody out",
            )  # fmt: skip
        least = max(FLOOR, self.rules.min_contributors)
        held = len(alive) - (not self.rules.graph.keeps_own)
        total = self._counted(said.total, alive)
        if said.total > self._total or total < max(least, len(alive)) or held < self.threshold:
            raise self.refusal(
                f"of {self._total} clients, {least} must be in the sum and {self.threshold} hold its shares",
                f"{total} and {held}", "Too many were lost; begin anew"
            )  # fmt: skip
        self.alive, self.lost = alive, lost

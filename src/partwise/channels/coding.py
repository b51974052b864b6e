"""Both sides of a sum whose masks are shared by a code: whoever is lost, one answer from those who stay opens it.

Each client cuts its mask into blocks, adds blocks of noise, and evaluates the polynomial through all of them at one
point per client; each gets the value at its own. Values add up as masks do, so that of the sum of masks every client
who stayed knows one value, and U of them tell the polynomial.

Notation, after the source: N clients sent keys; any T of them, with the server, learn nothing; U >= T + 1 must stay;
a mask is U - T blocks of m elements, modulo the prime p.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from partwise.channels.crypto import seal, unseal
from partwise.channels.field import Elements, Field
from partwise.channels.frames import (
    CODED_SUM,
    CODED_WORDS,
    BlocksSent,
    ElementsSent,
    Sealed,
    Step,
    pack_block,
    read_block,
    read_blocks,
    read_elements,
)
from partwise.channels.graphs import Complete, Degree, share_of
from partwise.channels.member import Member
from partwise.channels.protocol import NUMBERS, MaskBegin, MaskHello, MaskLayout, Rules
from partwise.channels.ring import Ring
from partwise.channels.round import Answers, Exchange, Planner, Round, Summed
from partwise.channels.sealing import Prepare
from partwise.core.channel import Seat
from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["FIELD", "Code", "open_coded", "seal_coded"]

FIELD = Field()
_LIMB = 16  # a number of 64 bits goes as four of so many, whose sums over 2^14 clients stay below p
_LIMBS = 64 // _LIMB


@dataclass(frozen=True)
class Code:
    """How many clients may work with the server, and how many may be lost.

    Args:
        corrupt: share of the clients, T / N.
        lost: share of the clients, 1 - U / N.
        most: clients in a sum.
    """

    corrupt: float
    lost: float
    most: int

    @property
    def is_server_drawn(self) -> bool:
        return False

    @property
    def keeps_own(self) -> bool:
        return True

    def noise(self, clients: int) -> int:
        """T."""
        return max(1, share_of(self.corrupt, clients))

    def degree(self, clients: int, *, is_active: bool) -> Degree:
        """All others, and U."""
        if clients > self.most:
            raise ProtocolError(
                f"Coded(max_cohort={self.most}): sums at most {self.most} clients, got {clients}. "
                "Raise it, with fewer bits or a smaller max_weight, or ask a smaller cohort."
            )
        noise, needed = self.noise(clients), clients - share_of(self.lost, clients)
        if needed <= noise:
            raise ProtocolError(
                f"Coded(corrupt={self.corrupt}, lost={self.lost}): of {clients} clients more than {noise} must stay, "
                f"got {needed}. Ask a larger cohort."
            )
        return Degree(clients - 1, needed)

    def edges(self, clients: Sequence[Client], neighbours: int) -> Mapping[Client, tuple[Client, ...]]:
        return Complete().edges(clients, neighbours)

    def blocks(self, clients: int) -> int:
        """U - T."""
        return self.degree(clients, is_active=False).threshold - self.noise(clients)

    def size(self, clients: int, layout: MaskLayout) -> int:
        """m, elements of a block."""
        return -(-(NUMBERS * _LIMBS + layout.dense) // self.blocks(clients))


@lru_cache(maxsize=4)
def _encoder(clients: int, needed: int) -> Elements:
    """(N, U): values at the clients' points 1..N of the polynomial that has given values at N + 1..N + U."""
    return FIELD.lagrange(np.arange(1, clients + 1), clients + np.arange(1, needed + 1))


def seal_coded(seat: Seat, rules: Rules, code: Code, held: Any, prepare: Prepare) -> Generator[Any, Any, None]:
    """Take part in one sum. `rules.graph` is the code; the rest as for `seal_sum`, without tables.

    Yields:
        Its answers to the server's messages.

    Raises:
        ProtocolError: the server asks for what it must not have.
    """
    it = Member(seat, rules, {})
    begin = yield
    it.begin(begin)
    said = yield MaskHello(it.advertise(), held)
    it.meet(said)
    coding = _Coding(it, code, prepare)
    delivered = yield coding.share()
    it.receive(delivered)
    coding.receive()
    survivors = yield coding.mask()
    it.hear_of(survivors)
    yield coding.unmask()
    raise it.refusal("of a mask, one sum is told, ever", "another question", "It is over")


class _Coding:
    """A client's mask, and what it has of the others'; forgotten at the end of the exchange."""

    def __init__(self, it: Member, code: Code, prepare: Prepare) -> None:
        self._it, self._clients = it, sorted(it.peers)
        vector = prepare(it.layout, {}, it.asked)  # which checks the layout, before anything of its size is made
        limbs = vector.head.view("<u2").astype(np.uint64)
        self._words, self._withheld = np.concatenate([limbs, vector.dense.astype(np.uint64)]), vector.withheld
        self._size, self._noise = code.size(it.asked, it.layout), code.noise(it.asked)
        self._mask = FIELD.random(code.blocks(it.asked) * self._size)
        self._blocks: dict[int, Elements] = {}

    def share(self) -> bytes:
        it = self._it
        noise = FIELD.random(self._noise * self._size)
        data = np.concatenate([self._mask, noise]).reshape(-1, self._size)  # (U, m)
        coded = FIELD.product(_encoder(it.asked, it.threshold), data)  # (N, m)
        sealed = {}
        for client, block in zip(self._clients, coded, strict=True):
            if client == it.me:
                self._blocks[client] = block
                continue
            text = pack_block((it.me, client, it.round), block)
            sealed[client] = Sealed(*seal(it.share_key(client), text, it.session))
        return BlocksSent(sealed).pack(it.round, it.me)

    def receive(self) -> None:
        """Open the others' blocks.

        Whom the server told of another model, layout or keys has sealed with other keys. It opens no block either, and
        so leaves by itself.
        """
        it = self._it
        for client, (nonce, text) in it.sealed.items():
            try:
                plain = unseal(it.share_key(client), nonce, text, it.session)
                self._blocks[client] = read_block(plain, (client, it.me, it.round), self._size, FIELD.prime)
            except ProtocolError:
                continue
        if len(self._blocks) < it.threshold:
            raise it.refusal(
                f"the blocks of at least {it.threshold} clients, its own among them, open",
                f"{len(self._blocks)}", "All must be told of the same model, layout and keys"
            )  # fmt: skip

    def mask(self) -> bytes:
        self._it.seat.memory["sealed"] = self._it.seat.reply  # from here on, whatever becomes of the exchange
        words = (self._words + self._mask[: len(self._words)]) % np.uint64(FIELD.prime)
        return ElementsSent(self._withheld, words).pack(CODED_WORDS, self._it.round, self._it.me)

    def unmask(self) -> bytes:
        """Its value of the sum of the masks of those who stayed."""
        total, closed = np.zeros(self._size, np.uint64), sorted(set(self._it.alive) - self._blocks.keys())
        if closed:
            raise self._it.refusal("a block of everybody's mask in the sum opens", f"none of {closed}", "Begin anew")
        for client in self._it.alive:
            total += self._blocks[client]
        return ElementsSent(0, FIELD.reduced(total)).pack(CODED_SUM, self._it.round, self._it.me)


def open_coded(cohort: Sequence[Client], rules: Rules, code: Code, planner: Planner, session: int) -> Exchange:
    """Ask for one sum. `rules.graph` is the code; the rest as for `open_sum`.

    Yields:
        Client -> message; takes client -> answer, of those that answered.

    Returns:
        The sum over those whose masked words came.

    Raises:
        ProtocolError: too few were left at some step, or what they sent was wrong: nothing was opened.
    """
    it = Round(rules, session)
    it.enough(cohort, "asked")
    hello = yield {c: MaskBegin(session) for c in cohort}
    it.meet(hello, planner)
    decoding = _Decoding(it, code)
    blocks = yield it.introduce()
    decoding.collect(blocks)
    words = yield it.deliver()
    decoding.add_up(words)
    sums = yield it.survivors()
    return decoding.total(sums)


class _Decoding:
    """What the server adds up, and the mask that it takes off."""

    def __init__(self, it: Round, code: Code) -> None:
        self._it, self._clients = it, list(it.here)
        self._count = NUMBERS * _LIMBS + it.plan.layout.dense
        self._size, self._blocks = code.size(len(it.here), it.plan.layout), code.blocks(len(it.here))
        self._sum = np.zeros(self._count, np.uint64)
        self._withheld = 0

    def collect(self, answers: Answers) -> None:
        it = self._it
        found = it.each(
            answers,
            lambda client, answer: read_blocks(answer, it.number, client, (it.known[client].neighbours, self._size)),
        )
        it.shares({client: blocks.sealed for client, blocks in found.items()})

    def add_up(self, answers: Answers) -> None:
        it = self._it

        def read(client: Client, answer: Any) -> int:
            step = Step(CODED_WORDS, it.number, client)
            withheld, elements = read_elements(answer, step, self._count, FIELD.prime)
            np.add(self._sum, elements, out=self._sum)  # 2^14 of them stay below 2^64
            return withheld

        found = it.each(answers, read)
        self._withheld = sum(found.values())
        it.words(found)

    def total(self, answers: Answers) -> Summed:
        it = self._it

        def read(client: Client, answer: Any) -> Elements:
            return read_elements(answer, Step(CODED_SUM, it.number, client), self._size, FIELD.prime).elements

        found = it.each(answers, read)
        it.enough(found, "told the sum of masks", is_summed=False)
        mask = self._decoded({1 + self._clients.index(client): block for client, block in found.items()})
        total = FIELD.reduced(self._sum + np.uint64(FIELD.prime) - mask[: self._count])
        limbs = total[: NUMBERS * _LIMBS].reshape(NUMBERS, _LIMBS) << np.arange(0, 64, _LIMB, dtype=np.uint64)
        dense = total[NUMBERS * _LIMBS :].astype(Ring(it.plan.layout.bits).dtype)
        return Summed(limbs.sum(axis=1), dense, {}, it.plan, tuple(it.here), it.refused, self._withheld)

    def _decoded(self, values: Mapping[int, Elements]) -> Elements:
        """The sum of masks, from its polynomial's values at U points; one more must lie on it, where there is one."""
        threshold = self._it.threshold
        points = sorted(values)
        known = np.array(points[:threshold])
        at = len(self._clients) + np.arange(1, self._blocks + 1)
        spare = points[threshold : threshold + 1]
        weights = FIELD.lagrange(np.array([*at, *spare]), known)
        found = FIELD.product(weights, np.stack([values[point] for point in known]))
        if spare and (found[-1] != values[spare[0]]).any():
            raise ProtocolError(
                f"masked sum {self._it.number}: what clients tell of the sum of masks must fit together, got values "
                "that do not. Somebody sent a wrong one; nothing was opened."
            )
        return found[: self._blocks].reshape(-1)

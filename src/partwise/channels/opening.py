"""The server's side of a masked sum."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import is_equal, public_of
from partwise.channels.frames import (
    MASK_KEY,
    SELF_MASK,
    Advertised,
    MaskedWords,
    SharesSent,
    read_advertised,
    read_consistency,
    read_masked,
    read_shares,
    read_unmasked,
)
from partwise.channels.protocol import (
    FLOOR,
    NUMBERS,
    MaskBegin,
    MaskDelivered,
    MaskHello,
    MaskLayout,
    MaskNeighbours,
    MaskSigned,
    MaskSurvivors,
    Rules,
    digest,
    pair_keys,
    point,
    self_key,
    self_secret,
    session_of,
)
from partwise.channels.ring import Ring
from partwise.channels.shamir import combine, weights_at_zero
from partwise.channels.streams import Mask, Words, add_masks_, row_masks
from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["Plan", "Planner", "Summed", "open_sum"]

Rows = NDArray[np.int64]


class Plan(NamedTuple):
    """What is summed.

    Args:
        layout: what clients are told.
        rows: table -> client -> its rows, (r,) int64 ascending, where each client sends its own.
        model: digest of the values that everybody was given whole.
    """

    layout: MaskLayout
    rows: Mapping[str, Mapping[Client, Rows]]
    model: bytes


class Planner(Protocol):
    """What the server makes of what clients hold."""

    def check(self, held: Any) -> None:
        """Refuse what a client says it holds.

        Raises:
            ProtocolError: it cannot be.
        """
        ...

    def plan(self, held: Mapping[Client, Any]) -> Plan:
        """What is summed."""
        ...


class Summed(NamedTuple):
    """What a masked sum has come to.

    Args:
        head: (8,) uint64.
        dense: (words,), of the ring.
        tables: table -> rows (r,) int64 ascending, and their sums (r, width).
        plan: what was summed.
        clients: whose words are in it.
        refused: client -> why its messages could not be used.
        withheld: coordinates that clients left out because too few hold them, counted for each client.
    """

    head: NDArray[np.uint64]
    dense: Words
    tables: Mapping[str, tuple[Rows, Words]]
    plan: Plan
    clients: tuple[Client, ...]
    refused: Mapping[Client, str]
    withheld: int


Answers = Mapping[Client, Any]
Exchange = Generator[dict[Client, Any], Answers, Any]


def open_sum(
    cohort: Sequence[Client], rules: Rules, planner: Planner, session: int
) -> Generator[dict[Client, Any], Answers, Summed]:
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
    it = _Round(rules, session)
    it.enough(cohort, "asked")
    hello = yield {c: MaskBegin(session) for c in cohort}
    plan = it.meet(hello, planner)
    shares = yield it.introduce(plan)
    it.collect(shares)
    masked = yield it.deliver()
    vectors = it.words(masked)
    if rules.is_active:
        signed = yield it.survivors()
        answers = yield it.signatures(signed)
    else:
        answers = yield it.survivors()
    it.shares(answers)
    return it.total(vectors)


@dataclass
class _Known:
    """What is known of a client.

    Args:
        keys: as they came, packed.
        advertised: the same, read.
        neighbours: whom it masks with.
        shares: what it sent for others.
    """

    keys: bytes
    advertised: Advertised
    neighbours: tuple[Client, ...] = ()
    shares: SharesSent = field(default_factory=lambda: SharesSent(b"", {}))


class _Round:
    """A server in one exchange."""

    def __init__(self, rules: Rules, session: int) -> None:
        self._rules, self._number = rules, session
        self._known: dict[Client, _Known] = {}
        self._threshold = 0
        self._in: list[Client] = []  # U1, U2, U3: who is left
        self._shared: list[Client] = []  # U2
        self._said: dict[Client, MaskNeighbours] = {}
        self._opened: dict[tuple[Client, int], dict[int, bytes]] = {}  # whose, and the kind -> point -> share
        self._refused: dict[Client, str] = {}
        self._session = b""

    def enough(self, clients: Collection[Client], what: str, *, is_summed: bool = True) -> None:
        """Fail unless as many clients are left as must be in the sum, or, once that is known, as open a secret."""
        least = self._threshold if self._rules.graph.keeps_own else 1
        if is_summed:
            least = max(least, FLOOR, self._rules.min_contributors)
        if len(clients) < least:
            refused = "".join(f"; client {c} was refused: {why}" for c, why in list(self._refused.items())[:1])
            raise ProtocolError(
                f"masked sum {self._number}: needs {least} clients that {what}, got {len(clients)}{refused}. "
                "Nothing was opened; ask a larger cohort, or lower min_contributors."
            )

    def _each(self, answers: Answers, read: Any) -> dict[Client, Any]:
        """What can be read; who sends what cannot is out."""
        found = {}
        for client in sorted(answers):
            try:
                found[client] = read(client, answers[client])
            except (ProtocolError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                self._refused[client] = str(error)  # whatever a client sends, the others' sum goes on
        return found

    def meet(self, hello: Answers, planner: Planner) -> Plan:
        rules, number = self._rules, self._number

        def read(client: Client, answer: Any) -> tuple[_Known, Any]:
            if not isinstance(answer, MaskHello):
                raise ProtocolError(f"client {client}: begins with its keys, got {type(answer).__name__}. Send them.")
            keys = read_advertised(answer.keys, number, client, is_signed=rules.is_active)
            planner.check(answer.held)
            return _Known(bytes(answer.keys), keys), answer.held

        found = self._each(hello, read)
        self.enough(found, "sent keys")
        self._known = {client: known for client, (known, _) in found.items()}
        self._in = list(found)
        degree = rules.graph.degree(len(found), is_active=rules.is_active)
        self._threshold = degree.threshold
        self.enough(found, "sent keys")
        for client, neighbours in rules.graph.edges(self._in, degree.neighbours).items():
            self._known[client].neighbours = neighbours
        return planner.plan({client: held for client, (_, held) in found.items()})

    def introduce(self, plan: Plan) -> dict[Client, MaskNeighbours]:
        self._plan = plan
        all_keys = digest(*(self._known[c].keys for c in self._in))
        for client in self._in:
            near = sorted((*self._known[client].neighbours, client))
            keys = tuple(self._known[c].keys for c in near)
            common = {c: both for c in near if c != client and (both := self._common(client, c))}
            layout = plan.layout
            self._said[client] = MaskNeighbours(len(self._in), all_keys, layout, tuple(near), keys, common)
        self._session = session_of(self._number, plan.model, self._rules, self._said[self._in[0]])
        return dict(self._said)

    def _common(self, one: Client, other: Client) -> dict[str, Rows]:
        """Table -> the rows that two clients hold, where they hold any."""
        pairs = {
            name: (rows[one], rows[other]) for name, rows in self._plan.rows.items() if {one, other} <= rows.keys()
        }
        both = {n: np.intersect1d(a, b, assume_unique=True) for n, (a, b) in pairs.items()}
        return {name: rows for name, rows in both.items() if len(rows)}

    def collect(self, answers: Answers) -> None:
        number = self._number
        found = self._each(
            answers, lambda client, answer: read_shares(answer, number, client, self._known[client].neighbours)
        )
        for client, shares in found.items():
            self._known[client].shares = shares
        self._in = self._shared = list(found)
        self.enough(found, "sent shares")

    def deliver(self) -> dict[Client, MaskDelivered]:
        here, total = set(self._in), len(self._in)
        messages = {}
        for client in self._in:
            sources = [c for c in self._known[client].neighbours if c in here]
            sealed = tuple(tuple(self._known[c].shares.sealed[client]) for c in sources)
            messages[client] = MaskDelivered(total, tuple(sources), sealed)  # type: ignore[arg-type]
        return messages

    def words(self, answers: Answers) -> dict[Client, MaskedWords]:
        layout, number = self._plan.layout, self._number
        ring = Ring(layout.bits)

        def read(client: Client, answer: Any) -> MaskedWords:
            count = layout.dense + sum(width * len(self._rows(name, client)) for name, width in layout.tables)
            return read_masked(answer, number, client, (ring.bits, count, ring.packed_bytes(count)))

        found = self._each(answers, read)
        self._in = list(found)
        self.enough(found, "sent masked words")
        return found

    def _rows(self, name: str, client: Client) -> Rows:
        rows: Rows = self._plan.rows[name].get(client, np.zeros(0, np.int64))
        return rows

    def survivors(self) -> dict[Client, MaskSurvivors]:
        here, shared = set(self._in), set(self._shared)
        messages = {}
        for client in self._in:
            near = sorted((*self._known[client].neighbours, client))
            alive = tuple(c for c in near if c in here)
            lost = tuple(c for c in near if c in shared and c not in here)
            messages[client] = MaskSurvivors(len(here), alive, lost)
        return messages

    def signatures(self, answers: Answers) -> dict[Client, MaskSigned]:
        found = self._each(answers, lambda client, answer: read_consistency(answer, self._number, client))
        self.enough(found, "signed who is left", is_summed=False)
        signed = MaskSigned(tuple(found), tuple(s.signature for s in found.values()))
        return dict.fromkeys(found, signed)

    def shares(self, answers: Answers) -> None:
        here, shared = set(self._in), set(self._shared)

        def read(client: Client, answer: Any) -> Any:
            near = {*self._known[client].neighbours, client} & shared
            kinds = {c: SELF_MASK if c in here else MASK_KEY for c in near}
            return read_unmasked(answer, self._number, client, kinds)

        found = self._each(answers, read)
        self.enough(found, "sent shares of the masks", is_summed=False)
        for client, unmasked in found.items():
            for whose, (kind, share) in unmasked.shares.items():
                self._opened.setdefault((whose, kind), {})[point(client)] = share

    def total(self, vectors: Mapping[Client, MaskedWords]) -> Summed:
        """Take off what is left of the masks."""
        layout = self._plan.layout
        ring = Ring(layout.bits)
        head, dense = np.zeros(NUMBERS, np.uint64), np.zeros(layout.dense, ring.dtype)
        seeds, keys = self._secrets()
        tables = self._empty_tables(ring)
        for client, vector in vectors.items():
            head += np.frombuffer(vector.head, "<u8")
            words = ring.unpack(vector.words, vector.number)
            dense += words[: layout.dense]
            self._add_rows_(tables, client, words[layout.dense :], seeds[client])
        masks = [Mask(self_key(seed, self._session, self._number, c), -1) for c, seed in seeds.items()]
        for lost, secret in keys.items():
            near = [client for client in self._known[lost].neighbours if client in seeds]
            masks += [self._take_off_(tables, (lost, client), secret) for client in near]
        add_masks_([head, dense], masks)
        found = {name: (rows, ring.reduced(words)) for name, (rows, words) in tables.items()}
        withheld = sum(vector.withheld for vector in vectors.values())
        return Summed(head, ring.reduced(dense), found, self._plan, tuple(vectors), self._refused, withheld)

    def _empty_tables(self, ring: Ring) -> dict[str, tuple[Rows, Words]]:
        found = {}
        for name, width in self._plan.layout.tables:
            rows = [self._rows(name, client) for client in self._in]
            union = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
            found[name] = union, np.zeros((len(union), width), ring.dtype)
        return found

    def _add_rows_(self, tables: Mapping[str, tuple[Rows, Words]], client: Client, words: Words, seed: bytes) -> None:
        """Add a client's own rows, without its self mask."""
        for name, (union, total) in tables.items():
            rows, width = self._rows(name, client), total.shape[1]
            own, words = words[: len(rows) * width].reshape(-1, width), words[len(rows) * width :]
            key = self_key(seed, self._session, self._number, client, name)
            at = np.searchsorted(union, rows)
            total[at] = total[at] + own - row_masks(key, rows, width, total.dtype)

    def _take_off_(self, tables: Mapping[str, tuple[Rows, Words]], pair: tuple[Client, Client], secret: bytes) -> Mask:
        """What a lost client's mask has left in the words of one that stayed; of its rows it is taken off here."""
        lost, client = pair
        common, public = self._common(lost, client), self._known[client].advertised.mask_key
        keys = pair_keys(secret, public, self._session, (self._number, lost, client), common)
        for name, rows in common.items():
            union, total = tables[name]
            at, words = np.searchsorted(union, rows), row_masks(keys[name], rows, total.shape[1], total.dtype)
            total[at] = total[at] - words if client < lost else total[at] + words
        return Mask(keys[""], -1 if client < lost else 1)

    def _secrets(self) -> tuple[dict[Client, bytes], dict[Client, bytes]]:
        """Seeds of the self masks of those who stayed, and mask keys of those who were lost."""
        here, weights = set(self._in), dict[tuple[int, ...], dict[int, int]]()
        seeds, keys = {}, {}
        for client in self._shared:
            kind = SELF_MASK if client in here else MASK_KEY
            if kind == MASK_KEY and not here & set(self._known[client].neighbours):
                continue  # nobody has masked with it
            secret = self._combined(client, kind, weights)
            known = self._known[client]
            if kind == SELF_MASK and is_equal(digest(b"b", secret), known.shares.commitment):
                seeds[client] = secret
            elif kind == MASK_KEY and is_equal(public_of(secret), known.advertised.mask_key):
                keys[client] = secret
            else:
                raise ProtocolError(
                    f"masked sum {self._number}: the shares of client {client} must give back what was committed to, "
                    "got another secret. Somebody sent wrong shares; nothing was opened."
                )
        return seeds, keys

    def _combined(self, client: Client, kind: int, weights: dict[tuple[int, ...], dict[int, int]]) -> bytes:
        shares = self._opened.get((client, kind), {})
        points = tuple(sorted(shares)[: self._threshold])
        if len(points) < self._threshold:
            raise ProtocolError(
                f"masked sum {self._number}: needs {self._threshold} shares of client {client}, got {len(points)}. "
                "Too many clients were lost; nothing was opened."
            )
        if points not in weights:
            weights[points] = dict(zip(points, weights_at_zero(points), strict=True))
        return self_secret(combine(shares, self._threshold, weights[points]))

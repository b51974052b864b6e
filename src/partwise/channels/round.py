"""The server in one exchange of a masked sum, as far as every such protocol goes: who is left, and what is summed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from partwise.channels.crypto import agree, key_pair, verify
from partwise.channels.frames import Advertised, Sealed, read_advertised
from partwise.channels.protocol import (
    FLOOR,
    MaskDelivered,
    MaskHello,
    MaskLayout,
    MaskNeighbours,
    MaskSurvivors,
    Rules,
    advertisement,
    digest,
    session_of,
)
from partwise.channels.streams import Words
from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["Answers", "Exchange", "Plan", "Planner", "Round", "RowIds", "Summed"]

RowIds = NDArray[np.int64]
Answers = Mapping[Client, Any]
_T = TypeVar("_T")


class Plan(NamedTuple):
    """What is summed.

    Args:
        layout: what clients are told.
        rows: table -> client -> its rows, (r,) int64 ascending, where each client sends its own.
        model: digest of the values that everybody was given whole.
    """

    layout: MaskLayout
    rows: Mapping[str, Mapping[Client, RowIds]]
    model: bytes


class Planner(Protocol):
    """What the server makes of what clients hold."""

    def check(self, held: Any) -> None:
        """Refuse what a client says it holds.

        Raises:
            ProtocolError: it cannot be.
        """
        ...

    def misfits(self, held: Mapping[Client, Any]) -> Mapping[Client, str]:
        """Client -> why what it says it holds cannot be summed with what most others do."""
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
    tables: Mapping[str, tuple[RowIds, Words]]
    plan: Plan
    clients: tuple[Client, ...]
    refused: Mapping[Client, str]
    withheld: int


Exchange = Generator[dict[Client, Any], Answers, Summed]


@dataclass
class Known:
    """What is known of a client.

    Args:
        keys: as they came, packed.
        advertised: the same, read.
        neighbours: whom it masks with.
        sealed: neighbour -> what it sent for it.
    """

    keys: bytes
    advertised: Advertised
    neighbours: tuple[Client, ...] = ()
    sealed: Mapping[Client, Sealed] = field(default_factory=dict)


class Round:
    """What the server keeps of an exchange.

    Args:
        rules: what was agreed beforehand.
        number: of the exchange.
    """

    def __init__(self, rules: Rules, number: int) -> None:
        self.rules, self.number = rules, number
        self.known: dict[Client, Known] = {}
        self.threshold = 0
        self.here: list[Client] = []  # U1, U2, U3: who is left
        self.shared: list[Client] = []  # U2
        self.plan: Plan
        self.session = b""
        self.refused: dict[Client, str] = {}
        self._secret = key_pair().secret  # to try others' keys with

    def enough(self, clients: Collection[Client], what: str, *, is_summed: bool = True) -> None:
        """Fail unless as many clients are left as must be in the sum, or, once that is known, as open a secret."""
        least = self.threshold if self.rules.graph.keeps_own else 1
        if is_summed:
            least = max(least, FLOOR, self.rules.min_contributors)
        if len(clients) < least:
            refused = "".join(f"; client {c} was refused: {why}" for c, why in list(self.refused.items())[:1])
            raise ProtocolError(
                f"masked sum {self.number}: needs {least} clients that {what}, got {len(clients)}{refused}. "
                "Nothing was opened; ask a larger cohort, or lower min_contributors."
            )

    def each(self, answers: Answers, read: Callable[[Client, Any], _T]) -> dict[Client, _T]:
        """What can be read; who sends what cannot is out."""
        found = {}
        for client in sorted(answers):
            try:
                found[client] = read(client, answers[client])
            except (ProtocolError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                self.refused[client] = str(error)  # whatever a client sends, the others' sum goes on
        return found

    def shares(self, found: Mapping[Client, Mapping[Client, Sealed]]) -> None:
        """Take what clients have sealed for one another."""
        for client, sealed in found.items():
            self.known[client].sealed = sealed
        self.here = self.shared = list(found)
        self.enough(found, "sent shares")

    def words(self, found: Collection[Client]) -> None:
        """Take whose words came."""
        self.here = list(found)
        self.enough(found, "sent masked words")

    def meet(self, hello: Answers, planner: Planner) -> None:
        """Read keys, and what is held; decide what is summed."""
        rules, number = self.rules, self.number

        def read(client: Client, answer: Any) -> tuple[Known, Any]:
            if not isinstance(answer, MaskHello):
                raise ProtocolError(f"client {client}: begins with its keys, got {type(answer).__name__}. Send them.")
            keys = read_advertised(answer.keys, number, client, is_signed=rules.is_active)
            self._check_keys(client, keys)
            planner.check(answer.held)
            return Known(bytes(answer.keys), keys), answer.held

        found = self._distinct(self.each(hello, read))
        misfits = planner.misfits({client: held for client, (_, held) in found.items()})
        self.refused.update(misfits)
        found = {client: of for client, of in found.items() if client not in misfits}
        self.enough(found, "sent keys")
        self.known = {client: known for client, (known, _) in found.items()}
        self.here = list(found)
        degree = rules.graph.degree(len(found), is_active=rules.is_active)
        self.threshold = degree.threshold
        self.enough(found, "sent keys")
        for client, neighbours in rules.graph.edges(self.here, degree.neighbours).items():
            self.known[client].neighbours = neighbours
        self.plan = planner.plan({client: held for client, (_, held) in found.items()})

    def _check_keys(self, client: Client, keys: Advertised) -> None:
        """Refuse keys for which every other client would leave the exchange."""
        for public in (keys.share_key, keys.mask_key):
            agree(self._secret, public)
        identities = self.rules.identities
        if identities is None:
            return
        try:
            key = identities.key_of(client)
        except ProtocolError:  # a server may know none: clients check for themselves
            return
        text = advertisement(self.number, client, self.rules.config, keys.share_key + keys.mask_key)
        if not verify(key, text, keys.signature):
            raise ProtocolError(f"client {client}: its keys must be signed by itself, got another signature.")

    def _distinct(self, found: dict[Client, tuple[Known, _T]]) -> dict[Client, tuple[Known, _T]]:
        """Without those who have a key twice, or one that another has too: it is not known whose it is."""
        keys = {c: (known.advertised.share_key, known.advertised.mask_key) for c, (known, _) in found.items()}
        times = Counter(key for pair in keys.values() for key in pair)
        twice = [client for client, pair in keys.items() if any(times[key] > 1 for key in pair)]
        self.refused.update({c: f"client {c}: keys must be distinct, got one of them twice." for c in twice})
        return {client: of for client, of in found.items() if client not in twice}

    def introduce(self) -> dict[Client, MaskNeighbours]:
        """Tell clients of one another, and of the layout."""
        all_keys, layout, messages = digest(*(self.known[c].keys for c in self.here)), self.plan.layout, {}
        for client in self.here:
            near = sorted((*self.known[client].neighbours, client))
            keys = tuple(self.known[c].keys for c in near)
            common = {c: both for c in near if c != client and (both := self.common(client, c))}
            messages[client] = MaskNeighbours(len(self.here), all_keys, layout, tuple(near), keys, common)
        self.session = session_of(self.number, self.plan.model, self.rules, messages[self.here[0]])
        return messages

    def common(self, one: Client, other: Client) -> dict[str, RowIds]:
        """Table -> the rows that two clients hold, where they hold any."""
        pairs = {name: (rows[one], rows[other]) for name, rows in self.plan.rows.items() if {one, other} <= rows.keys()}
        both = {n: np.intersect1d(a, b, assume_unique=True) for n, (a, b) in pairs.items()}
        return {name: rows for name, rows in both.items() if len(rows)}

    def deliver(self) -> dict[Client, MaskDelivered]:
        """Hand on what was sealed."""
        here, total = set(self.here), len(self.here)
        messages = {}
        for client in self.here:
            sources = [c for c in self.known[client].neighbours if c in here]
            sealed = tuple(tuple(self.known[c].sealed[client]) for c in sources)
            messages[client] = MaskDelivered(total, tuple(sources), sealed)  # type: ignore[arg-type]
        return messages

    def survivors(self) -> dict[Client, MaskSurvivors]:
        """Tell each client who is left of those it masks with."""
        here, shared = set(self.here), set(self.shared)
        messages = {}
        for client in self.here:
            near = sorted((*self.known[client].neighbours, client))
            alive = tuple(c for c in near if c in here)
            lost = tuple(c for c in near if c in shared and c not in here)
            messages[client] = MaskSurvivors(len(here), alive, lost)
        return messages

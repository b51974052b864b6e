"""Who masks with whom, and how many of a client's neighbours can open its shares.

Notation: n clients, k neighbours each, t shares open a secret; gamma of the clients are corrupt, delta are lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, log2
from typing import NamedTuple, Protocol

from partwise.core.errors import ProtocolError
from partwise.core.population import Client

__all__ = ["Complete", "Degree", "Graph", "RandomRegular", "choose_degree", "harary", "share_of"]


def share_of(share: float, clients: int) -> int:
    """So many of the clients, rounded down; a product that is whole but for rounding counts as whole."""
    return int(share * clients + 1e-9)


class Degree(NamedTuple):
    """How many neighbours a client has (itself not counted), and how many shares open a secret."""

    neighbours: int
    threshold: int


class Graph(Protocol):
    """Who masks with whom."""

    @property
    def is_server_drawn(self) -> bool:
        """Whether the server decides who is whose neighbour; then clients must trust it in that."""
        ...

    @property
    def keeps_own(self) -> bool:
        """Whether a client has a share of its own secrets as well."""
        ...

    def degree(self, clients: int, *, is_active: bool) -> Degree:
        """For so many clients, against a server that follows the protocol or one that does not."""
        ...

    def edges(self, clients: Sequence[Client], neighbours: int) -> Mapping[Client, tuple[Client, ...]]:
        """Client -> its neighbours, ascending; made after the clients have committed themselves to their keys."""
        ...


@dataclass(frozen=True)
class Complete:
    """Every client masks with every other one.

    Args:
        threshold: share of the clients whose shares open a secret, in (0, 1); None for floor(n/2) + 1 against a server
            that follows the protocol, floor(2n/3) + 1 against one that does not: there, twice the threshold must
            exceed the clients and those of them that are corrupt, at most a third, or the server could have half of
            them open one kind of share and half the other.

    Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0.5 <= self.threshold < 1:
            raise ValueError(
                f"Complete(threshold={self.threshold}): must lie in [0.5, 1), got {self.threshold}. "
                "None takes the usual one."
            )

    @property
    def is_server_drawn(self) -> bool:
        return False

    @property
    def keeps_own(self) -> bool:
        return True

    def degree(self, clients: int, *, is_active: bool) -> Degree:
        least = 2 * clients // 3 + 1 if is_active else clients // 2 + 1
        wanted = least if self.threshold is None else share_of(self.threshold, clients) + 1
        return Degree(clients - 1, min(clients, max(least, wanted)))

    def edges(self, clients: Sequence[Client], neighbours: int) -> Mapping[Client, tuple[Client, ...]]:
        return {c: tuple(d for d in sorted(clients) if d != c) for c in clients}


@dataclass(frozen=True)
class RandomRegular:
    """Every client masks with k others: neighbours on a ring in a random order.

    k and t are the smallest for which, but for a stated chance, no t of a client's neighbours are corrupt, t of them
    stay, and the honest clients that stay are linked. A client keeps no share of its own secrets for itself.

    Args:
        corrupt: gamma, the share of clients that may work with the server.
        lost: delta, the share that may be lost in a round.
        security_bits: sigma; secrets stay secret but for a chance of 2^-sigma.
        failure_bits: eta; a round that loses no more can be opened but for a chance of 2^-eta.

    Source: Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020 (the semi-honest
        protocol, on a Harary graph).
    Differs: the bounds are the hypergeometric tails themselves.
    """

    corrupt: float = 0.1
    lost: float = 0.1
    security_bits: int = 40
    failure_bits: int = 30

    def __post_init__(self) -> None:
        for name in ("corrupt", "lost"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"RandomRegular({name}={value}): must lie in [0, 1), got {value}. 0.1 is usual.")
        if self.security_bits < 1 or self.failure_bits < 1:
            raise ValueError("RandomRegular(): security_bits and failure_bits must be at least 1. 40 and 30 are usual.")

    @property
    def is_server_drawn(self) -> bool:
        return True

    @property
    def keeps_own(self) -> bool:
        return False

    def degree(self, clients: int, *, is_active: bool) -> Degree:
        found = choose_degree(clients, self)
        if found is None:
            raise ProtocolError(
                f"{self!r}: no graph over {clients} clients keeps both chances, got none up to {clients - 1} "
                "neighbours. Use Complete(), a larger cohort, or weaker demands."
            )
        return found

    def edges(self, clients: Sequence[Client], neighbours: int) -> Mapping[Client, tuple[Client, ...]]:
        ring = sorted(clients)
        secrets.SystemRandom().shuffle(ring)
        return harary(ring, neighbours)


def harary(ring: Sequence[Client], neighbours: int) -> dict[Client, tuple[Client, ...]]:
    """Each client's neighbours: the k / 2 nearest on both sides of a ring.

    Args:
        ring: clients in the order in which they sit.
        neighbours: k; even, or one less than there are clients.

    Example:
        >>> harary(range(10), 4)[0]
        (1, 2, 8, 9)
    """
    n = len(ring)
    if neighbours >= n - 1:
        return {c: tuple(sorted(d for d in ring if d != c)) for c in ring}
    if neighbours % 2 or neighbours < 2:
        raise ValueError(f"harary(neighbours={neighbours}): must be even, got {neighbours}. Take one more.")
    steps = [s for half in range(1, neighbours // 2 + 1) for s in (half, -half)]
    return {c: tuple(sorted(ring[(at + s) % n] for s in steps)) for at, c in enumerate(ring)}


@lru_cache(maxsize=256)
def choose_degree(clients: int, graph: RandomRegular) -> Degree | None:
    """The smallest even k, and t, that keep a graph's promises; None if there is none.

    Three chances, over all clients: t of k neighbours are corrupt (n P[Hyp(n-1, gamma n, k) >= t] < 2^-sigma); fewer
    than t stay (n P[Hyp(n-1, (1-delta) n, k) < t] < 2^-eta); k/2 in a row on the ring are corrupt or lost
    (n (gamma+delta)^(k/2) < 2^-sigma).

    Args:
        clients: n.
        graph: whose promises.

    Example:
        >>> choose_degree(1000, RandomRegular(0.05, 0.05))
        Degree(neighbours=34, threshold=18)
    """
    corrupt = round(graph.corrupt * clients)
    staying = clients - 1 - round(graph.lost * clients)  # of the others, if it stays itself
    bad = graph.corrupt + graph.lost
    for k in range(2, clients, 2):
        if bad and log2(clients) + k / 2 * log2(bad) >= -graph.security_bits:
            continue
        # Both chances are monotone in t: the smallest t that keeps secrets is the best for being opened.
        t = _smallest_threshold(clients, corrupt, k, graph.security_bits)
        if t is not None and _is_below(clients, _lower_tail(clients - 1, staying, k, t), graph.failure_bits):
            return Degree(k, t)
    return None


def _smallest_threshold(clients: int, corrupt: int, k: int, bits: int) -> int | None:
    ways, whole = 0, comb(clients - 1, k)
    for t, term in _terms(clients - 1, corrupt, k):  # P[X >= t], from above
        ways += term
        if clients * ways << bits >= whole:
            return t + 1 if t < k else None
    return 1


def _terms(total: int, good: int, k: int) -> Iterator[tuple[int, int]]:
    """x and how many ways there are to draw x good ones among k, from the largest x down."""
    x, bad = min(k, good), total - good
    if k - x > bad:
        return
    term = comb(good, x) * comb(bad, k - x)
    while x >= 0 and k - x <= bad:
        yield x, term
        term = term * x * (bad - k + x) // ((good - x + 1) * (k - x + 1))
        x -= 1


def _lower_tail(total: int, good: int, k: int, t: int) -> tuple[int, int]:
    """P[Hyp(total, good, k) < t] as a fraction."""
    above = sum(term for x, term in _terms(total, good, k) if x >= t)
    return comb(total, k) - above, comb(total, k)


def _is_below(clients: int, chance: tuple[int, int], bits: int) -> bool:
    return clients * chance[0] << bits < chance[1]

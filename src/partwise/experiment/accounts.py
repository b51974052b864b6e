"""Ledgers of a privacy guarantee: what has been released, and the epsilon that it comes to; saved with the run.

Notation: z is the noise multiplier. What a client adds to one commit is bounded by f times what the noise is made for;
f is the number of its replies in it, each by its scale.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from partwise.core.errors import CompositionError
from partwise.experiment.accounting import (
    Accountant,
    gaussian_epsilon,
    poisson_epsilon,
    without_replacement_epsilon,
    zcdp_epsilon,
)

__all__ = ["EPSILON", "Account", "Concentrated", "Counted", "Nodes", "Replaced", "Sampled", "shares"]

EPSILON = ("epsilon", "privacy")  # name and scope of the metric


class Account(Protocol):
    """A ledger of one run. Its state is a plain tree, which `state` gives and `restore` takes."""

    def charge(self, clients: Sequence[int], scales: Sequence[float] = ()) -> None:
        """A commit was made of the replies of these clients. scales: of each reply, () for 1."""
        ...

    def epsilon(self) -> float:
        """What has been spent."""
        ...

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...

    def count(self, state: Any) -> None:
        """What another course of the run had spent, by its ledger's state, counts as well; its keys may be strings."""
        ...


def shares(clients: Sequence[int], scales: Sequence[float] = ()) -> dict[int, float]:
    """Client -> f.

    Example:
        >>> shares([4, 7, 4], [0.5, 1.0, 0.25])
        {4: 0.75, 7: 1.0}
    """
    found: dict[int, float] = {}
    for client, scale in zip(clients, scales or (1.0,) * len(clients), strict=True):
        found[client] = found.get(client, 0.0) + abs(scale)
    return found


def _larger(one: Mapping[int, float], other: Mapping[Any, float]) -> dict[int, float]:
    """Of each client, the larger number."""
    found = dict(one)
    for client, spent in other.items():
        found[int(client)] = max(found.get(int(client), 0.0), float(spent))
    return found


class _Commits:
    """A ledger that counts commits, in each of which a client is once at most.

    A resumed run makes versions again from the cohorts that they had: the same draw hides a client once, however often
    what came of it is given away. So it is kept which versions were made more than once, and how often.
    """

    def __init__(self) -> None:
        self._commits = 0
        self._made = 0  # versions, also those that are to be made again
        self._again: dict[int, int] = {}  # version - 1 -> how often it was made, where that is more than once

    def charge(self, clients: Sequence[int], scales: Sequence[float] = ()) -> None:
        most = max(shares(clients, scales).values(), default=0.0)
        if most > 1:
            raise CompositionError(
                f"{type(self).__name__}(): a client must be in a commit once and unscaled for sampling to hide it, got "
                f"one that counts {most:g} times. Use Synchronous, or amplification='none'."
            )
        if self._commits == self._made:
            self._made += 1
        else:
            self._again[self._commits] = self._again.get(self._commits, 1) + 1
        self._commits += 1

    @property
    def _releases(self) -> dict[int, int]:
        """How often a version was made -> how many of them."""
        return {1: self._made - len(self._again), **Counter(self._again.values())}

    def state(self) -> Any:
        return {"commits": self._commits, "made": self._made, "again": dict(self._again)}

    def restore(self, state: Any) -> None:
        self._commits = state["commits"]
        self._made, self._again = _times(state)

    def count(self, state: Any) -> None:
        made, again = _times(state)
        self._made = max(self._made, made)
        for version, times in again.items():
            self._again[version] = max(self._again.get(version, 1), times)


def _times(state: Any) -> tuple[int, dict[int, int]]:
    """How many versions were made, and how often those that were more than once."""
    if "made" in state:
        return state["made"], {int(version): times for version, times in state["again"].items()}
    each = state.get("times", [1] * state["commits"])  # of a checkpoint that has a number for every version
    return len(each), {version: times for version, times in enumerate(each) if times > 1}


class Sampled(_Commits):
    """Commits over Poisson samples; a client is added or removed.

    Args:
        noise_multiplier: z.
        rate: of the sampling.
        delta: of the guarantee.
        accountant: which one.
    """

    def __init__(self, noise_multiplier: float, rate: float, delta: float, accountant: Accountant = "pld") -> None:
        super().__init__()
        self._z, self._rate, self._delta, self._accountant = noise_multiplier, rate, delta, accountant

    def epsilon(self) -> float:
        return poisson_epsilon(self._z, self._rate, self._releases, self._delta, self._accountant)


class Replaced(_Commits):
    """Commits over samples of fixed size; a client is replaced by another, which moves a sum by twice the clip norm.

    Args:
        noise_multiplier: z, in terms of the clip norm.
        size: of a sample.
        population: N.
        delta: of the guarantee.
    """

    def __init__(self, noise_multiplier: float, size: int, population: int, delta: float) -> None:
        super().__init__()
        self._z, self._size, self._population, self._delta = noise_multiplier, size, population, delta

    def epsilon(self) -> float:
        return without_replacement_epsilon(self._z / 2, self._size, self._population, self._releases, delta=self._delta)


class Nodes:
    """Commits that are leaves of a tree whose nodes get Gaussian noise, each charged to those who are in it.

    What a client adds to a node is the sum of what it adds to the leaves below, so that being in a tree twice can cost
    up to four times as much. Epsilon is that of the client whose squares of what it adds to all nodes sum to most.

    Args:
        noise_multiplier: z.
        delta: of the guarantee.
        restart_every: as in `TreeNoise`.
    """

    def __init__(self, noise_multiplier: float, delta: float, restart_every: int = 0) -> None:
        self._z, self._delta, self._restart = noise_multiplier, delta, restart_every
        self._step, self._most = 0, 0.0
        self._open: list[tuple[int, dict[int, float]]] = []  # levels of a complete node, and what clients add to it
        self._spent: dict[int, float] = {}

    def charge(self, clients: Sequence[int], scales: Sequence[float] = ()) -> None:
        self._add(1, shares(clients, scales))
        while len(self._open) > 1 and self._open[-1][0] == self._open[-2][0]:
            self._join()
        self._step += 1
        if self._step == self._restart:
            while len(self._open) > 1:
                if self._open[-2][0] != self._open[-1][0]:
                    self._open.append((self._open[-1][0], {}))
                self._join()
            self._open, self._step = [], 0

    def _join(self) -> None:
        (levels, left), (_, right) = self._open.pop(-2), self._open.pop()
        for client, share in right.items():
            left[client] = left.get(client, 0.0) + share
        self._add(levels + 1, left)

    def _add(self, levels: int, node: dict[int, float]) -> None:
        """A node is complete."""
        self._open.append((levels, node))
        for client, share in node.items():
            spent = self._spent[client] = self._spent.get(client, 0.0) + share**2
            self._most = max(self._most, spent)

    def epsilon(self) -> float:
        return gaussian_epsilon(math.sqrt(self._most) / self._z if self._z else math.inf, self._delta)

    def state(self) -> Any:
        nodes = [(levels, dict(node)) for levels, node in self._open]
        return {"step": self._step, "open": nodes, "spent": dict(self._spent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._spent = state["step"], dict(state["spent"])
        self._open = [(levels, dict(node)) for levels, node in state["open"]]
        self._most = max(self._spent.values(), default=0.0)

    def count(self, state: Mapping[str, Any]) -> None:
        self._spent = _larger(self._spent, state["spent"])
        self._most = max(self._spent.values(), default=0.0)


class Counted:
    """Gaussian commits, each charged to those who are in it; epsilon is that of the client who was in most.

    Nothing is gained by sampling, so nothing is assumed of it but that it looks at no client's data.

    Args:
        noise_multiplier: z.
        delta: of the guarantee.
    """

    def __init__(self, noise_multiplier: float, delta: float) -> None:
        self._z, self._delta = noise_multiplier, delta
        self._spent: dict[int, float] = {}  # client -> sum of f²
        self._most = 0.0

    @property
    def most(self) -> float:
        """Of all clients, the largest sum of f²."""
        return self._most

    def charge(self, clients: Sequence[int], scales: Sequence[float] = ()) -> None:
        for client, share in shares(clients, scales).items():
            spent = self._spent[client] = self._spent.get(client, 0.0) + share**2
            self._most = max(self._most, spent)

    def epsilon(self) -> float:
        return gaussian_epsilon(math.sqrt(self._most) / self._z if self._z else math.inf, self._delta)

    def state(self) -> Any:
        return {"spent": dict(self._spent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._spent = {int(client): float(spent) for client, spent in state["spent"].items()}
        self._most = max(self._spent.values(), default=0.0)

    def count(self, state: Mapping[str, Any]) -> None:
        self._spent = _larger(self._spent, state["spent"])
        self._most = max(self._spent.values(), default=0.0)


class Concentrated:
    """Commits that are rho-zCDP for each client that is in one, charged to those who are.

    Args:
        rho: of one commit.
        delta: of the guarantee.
    """

    def __init__(self, rho: float, delta: float) -> None:
        self._rho, self._delta = rho, delta
        self._inner = Counted(1.0, delta)

    def charge(self, clients: Sequence[int], scales: Sequence[float] = ()) -> None:
        self._inner.charge(clients, scales)

    def epsilon(self) -> float:
        return zcdp_epsilon(self._rho * self._inner.most, self._delta)

    def state(self) -> Any:
        return self._inner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._inner.restore(state)

    def count(self, state: Mapping[str, Any]) -> None:
        self._inner.count(state)

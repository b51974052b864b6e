"""What partitioners are made of: shares, cuts and checks."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.populations.columns import known

__all__ = [
    "HUGE",
    "Positions",
    "by_owner",
    "check_minimum",
    "check_num",
    "cut",
    "dirichlet",
    "ends_of",
    "enough",
    "labels_of",
    "raised",
    "without",
]

Positions = NDArray[np.int64]

_PLENTY = 10  # examples of a label for each client, of which one more or less is little
HUGE = 1e300  # from here on draws overflow; their limit is the mean, an equal share for everybody


def dirichlet(rng: np.random.Generator, alpha: float, num: int) -> NDArray[np.float64]:
    """Shares of so many clients."""
    if alpha > HUGE:
        return np.full(num, 1 / num)
    shares = rng.dirichlet(np.full(num, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0.5:
        return shares
    # A tiny alpha underflows; its limit is one random client that gets everything.
    shares = np.zeros(num)
    shares[rng.integers(num)] = 1.0
    return shares


def without(shares: NDArray[np.float64], full: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The shares over the clients that are not full; equal ones where those had nothing."""
    rest: NDArray[np.float64] = np.where(full, 0.0, shares)
    if rest.sum() <= 1e-12:
        rest = (~full).astype(float)
    rest /= rest.sum()
    return rest


def cut(order: Positions, shares: NDArray[np.float64]) -> list[Positions]:
    """The order cut by the shares."""
    ends = np.rint(np.cumsum(shares) * len(order)).astype(np.int64)
    return [np.sort(part) for part in np.split(order, ends[:-1])]


def ends_of(rng: np.random.Generator, shares: NDArray[np.float64], n: int) -> Positions:
    """Where the clients' parts of n examples of one label end, (N,), by their shares."""
    exact = np.cumsum(shares) * n
    if n >= _PLENTY * len(shares):
        return np.rint(exact).astype(np.int64)
    # So few that rounding would favour the same clients for every label: with this, each gets its share in the mean.
    return np.floor(exact + rng.random()).astype(np.int64)


def by_owner(owner: NDArray[np.int64], num: int) -> list[Positions]:
    """Positions of each client, from the owner of each example."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=num))[:-1])


def raised(parts: list[Positions], minimum: int, rng: np.random.Generator) -> list[Positions]:
    """Every part with at least `minimum` examples, moved one by one from whoever has most."""
    short = [c for c, part in enumerate(parts) if len(part) < minimum]
    if not short:
        return parts
    hands = [rng.permutation(part).tolist() for part in parts]
    largest = [(-len(hand), c) for c, hand in enumerate(hands)]
    heapq.heapify(largest)
    for client in short:
        while len(hands[client]) < minimum:
            size, giver = heapq.heappop(largest)
            if -size != len(hands[giver]):  # out of date: its owner has received examples since
                heapq.heappush(largest, (-len(hands[giver]), giver))
                continue
            hands[client].append(hands[giver].pop())
            heapq.heappush(largest, (-len(hands[giver]), giver))
    return [np.sort(np.array(hand, np.int64)) for hand in hands]


def labels_of(part: object, columns: Mapping[str, Tensor], name: str) -> NDArray[np.int64]:
    """The labels in a column."""
    values = columns[known(f"{type(part).__name__}(partition_by={name!r})", name, columns)]
    if values.dim() != 1:
        raise DataError(
            f"{type(part).__name__}(partition_by={name!r}): needs one label per example, got shape "
            f"{tuple(values.shape)}. Name a column of labels."
        )
    found: NDArray[np.int64] = values.numpy()
    return found


def enough(part: object, columns: Mapping[str, Tensor], num: int, minimum: int) -> int:
    """How many examples there are; refused if they are too few."""
    n = len(next(iter(columns.values()))) if columns else 0
    if n < num * minimum:
        raise DataError(
            f"{part}: needs {num} x {minimum} = {num * minimum} examples, got {n}. Lower the number of clients or "
            "the minimum size."
        )
    return n


def check_num(part: object, num: int) -> None:
    """Refuse a number of clients below 1."""
    if num < 1:
        name = type(part).__name__
        raise ValueError(f"{name}(num_partitions={num}): needs at least one client, got {num}. Use 1 for a single one.")


def check_minimum(part: object, minimum: int) -> None:
    """Refuse a smallest size below 1."""
    if minimum < 1:
        name = type(part).__name__
        raise ValueError(
            f"{name}(min_partition_size={minimum}): must be at least 1, got {minimum}. Use 1 for no minimum."
        )

"""Dividing one data set among clients.

Every partitioner returns, for each client, the ascending positions of its examples. Names and arguments follow
flwr-datasets (`DirichletPartitioner(num_partitions, partition_by, alpha, ...)` is `Dirichlet(...)` here).

Shapes: n examples, N clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from partwise.core.rng import numpy_generator
from partwise.populations.dividing import (
    Positions,
    by_owner,
    check_minimum,
    check_num,
    cut,
    dirichlet,
    ends_of,
    enough,
    labels_of,
    raised,
    without,
)

__all__ = ["IID", "Dirichlet", "LinearSizes", "NaturalKey", "Partitioner", "Positions", "QuantitySkew", "Shards"]


class Partitioner(Protocol):
    """A rule that divides examples among clients."""

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        """For each client the ascending positions of its examples; no example is given twice."""
        ...


@dataclass(frozen=True)
class IID:
    """Equal shares at random.

    Args:
        num_partitions: N, clients.

    Example:
        >>> import torch
        >>> [len(part) for part in IID(3).split({"y": torch.zeros(10)}, seed=1)]
        [4, 3, 3]
    """

    num_partitions: int

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        n = enough(self, columns, self.num_partitions, 1)
        order = numpy_generator(seed, "partition").permutation(n)
        return [np.sort(part) for part in np.array_split(order, self.num_partitions)]


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each label's examples are spread by shares drawn from a Dirichlet distribution.

    Args:
        num_partitions: N, clients.
        partition_by: the column with the labels.
        alpha: concentration, > 0. 0.1: nearly one label per client; 100: nearly IID.
        min_partition_size: examples every client has at least.
        self_balancing: a client that has more than n / N examples gets none of the labels that follow.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, arXiv
    1905.12022.
    Differs: a client below the minimum receives random examples from the largest, one at a time, instead of
    drawing everything anew until the minimum holds, which need not end; few examples of a label are rounded at random.
    """

    num_partitions: int
    partition_by: str = "y"
    alpha: float = 0.5
    min_partition_size: int = 10
    self_balancing: bool = False

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)
        if not self.alpha > 0:
            raise ValueError(
                f"Dirichlet(alpha={self.alpha}): alpha must be above 0, got {self.alpha}. Use 0.1 for skew."
            )
        check_minimum(self, self.min_partition_size)

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        n = enough(self, columns, self.num_partitions, self.min_partition_size)
        rng = numpy_generator(seed, "partition")
        labels = labels_of(self, columns, self.partition_by)
        owner, sizes = np.empty(n, np.int64), np.zeros(self.num_partitions, np.int64)
        for label in np.unique(labels):
            examples = rng.permutation(np.flatnonzero(labels == label))
            shares = dirichlet(rng, self.alpha, self.num_partitions)
            if self.self_balancing:
                shares = without(shares, sizes > n / self.num_partitions)
            ends = ends_of(rng, shares, len(examples))
            ends[-1] = len(examples)
            counts = np.diff(ends, prepend=0)
            owner[examples] = np.repeat(np.arange(self.num_partitions), counts)
            sizes += counts
        return raised(by_owner(owner, self.num_partitions), self.min_partition_size, rng)


@dataclass(frozen=True)
class Shards:
    """The examples sorted by label, cut into shards, a few random shards per client.

    Args:
        num_partitions: N, clients.
        partition_by: the column with the labels.
        num_shards_per_partition: shards each client receives.
        shard_size: examples per shard; shards that are left over, at random, belong to nobody. 0: all examples, as
            evenly as possible.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
    2017, arXiv 1602.05629, section 3 (two shards of 300 for each of 100 clients).
    """

    num_partitions: int
    partition_by: str = "y"
    num_shards_per_partition: int = 2
    shard_size: int = 0

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)
        if self.num_shards_per_partition < 1 or self.shard_size < 0:
            raise ValueError(
                f"Shards(): needs at least one shard per client and a size of at least 0, got "
                f"num_shards_per_partition={self.num_shards_per_partition}, shard_size={self.shard_size}. "
                "Use shard_size=0 for all examples."
            )

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        num_shards = self.num_partitions * self.num_shards_per_partition
        least = self.num_shards_per_partition * max(self.shard_size, 1)
        n = enough(self, columns, self.num_partitions, least)
        rng = numpy_generator(seed, "partition")
        mixed = rng.permutation(n)
        labels = labels_of(self, columns, self.partition_by)
        order = mixed[np.argsort(labels[mixed], kind="stable")]
        # Of all shards, or whole labels would be left over: those that come last.
        cuts = n // self.shard_size if self.shard_size else num_shards
        shards = np.array_split(order[: cuts * self.shard_size or n], cuts)
        hands = rng.permutation(cuts)[:num_shards].reshape(self.num_partitions, self.num_shards_per_partition)
        return [np.sort(np.concatenate([shards[s] for s in hand])) for hand in hands]


@dataclass(frozen=True)
class NaturalKey:
    """One client per value of a column, in ascending order of the values.

    Args:
        partition_by: the column with the keys.
    """

    partition_by: str

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        enough(self, columns, 1, 1)
        values, owner = np.unique(labels_of(self, columns, self.partition_by), return_inverse=True)
        return by_owner(owner, len(values))


@dataclass(frozen=True)
class QuantitySkew:
    """Random examples, but sizes drawn from a Dirichlet distribution.

    Args:
        num_partitions: N, clients.
        alpha: concentration, > 0; small: a few clients have nearly everything.
        min_partition_size: examples every client has at least.

    Source: Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv 2102.02079.
    """

    num_partitions: int
    alpha: float = 0.5
    min_partition_size: int = 1

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)
        if not self.alpha > 0:
            raise ValueError(f"QuantitySkew(alpha={self.alpha}): alpha must be above 0, got {self.alpha}. Use 0.5.")
        check_minimum(self, self.min_partition_size)

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        n = enough(self, columns, self.num_partitions, self.min_partition_size)
        rng = numpy_generator(seed, "partition")
        shares = dirichlet(rng, self.alpha, self.num_partitions)
        return raised(cut(rng.permutation(n), shares), self.min_partition_size, rng)


@dataclass(frozen=True)
class LinearSizes:
    """Random examples; client c has a share proportional to c + 1.

    Args:
        num_partitions: N, clients.
    """

    num_partitions: int

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        n = enough(self, columns, self.num_partitions, 1)
        rng = numpy_generator(seed, "partition")
        weights = np.arange(1.0, self.num_partitions + 1)
        return raised(cut(rng.permutation(n), weights / weights.sum()), 1, rng)

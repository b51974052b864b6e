"""Two partitions for few, large clients: as the experiments with FedCompass have them.

Shapes: n examples, N clients, C classes.

Source: Li et al., "FedCompass: efficient cross-silo federated learning on heterogeneous client devices using a
computing power-aware scheduler", ICLR 2024, arXiv 2309.14675.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partwise.core.errors import DataError
from partwise.core.rng import numpy_generator
from partwise.populations.dividing import (
    HUGE,
    Positions,
    by_owner,
    check_minimum,
    check_num,
    dirichlet,
    ends_of,
    enough,
    labels_of,
    raised,
)

__all__ = ["ClassPartition", "DualDirichlet"]

_TRIES = 1000  # of drawing classes until each has a client


@dataclass(frozen=True)
class DualDirichlet:
    """Skew of size and of labels: client i has the share a_i b_ic / (sum over k of a_k b_kc) of class c.

    a ~ Dir(clients_alpha / N), b_i ~ Dir(classes_alpha * prior), with the classes' shares of the data as prior.

    Args:
        num_partitions: N, clients.
        partition_by: the column with the labels.
        clients_alpha: concentration of the sizes, > 0. Default: N, so that a ~ Dir(1).
        classes_alpha: concentration of the labels, > 0.
        min_partition_size: examples every client has at least.

    Differs: a client below the minimum receives random examples from the largest.

    Example:
        >>> import torch
        >>> parts = DualDirichlet(4, min_partition_size=1).split({"y": torch.arange(60) % 3}, seed=1)
        >>> sum(map(len, parts))
        60
    """

    num_partitions: int
    partition_by: str = "y"
    clients_alpha: float | None = None
    classes_alpha: float = 0.5
    min_partition_size: int = 10

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)
        check_minimum(self, self.min_partition_size)
        for name in ("clients_alpha", "classes_alpha"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"DualDirichlet({name}={value}): must be above 0, got {value}. 0.5 is usual.")

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        num, rng = self.num_partitions, numpy_generator(seed, "partition")
        n, labels = enough(self, columns, num, self.min_partition_size), labels_of(self, columns, self.partition_by)
        classes, counts = np.unique(labels, return_counts=True)
        alpha = num if self.clients_alpha is None else self.clients_alpha
        sizes = dirichlet(rng, alpha / num, num)
        if self.classes_alpha > HUGE:
            mixes = np.tile(counts / n, (num, 1))
        else:
            mixes = rng.dirichlet(self.classes_alpha * counts / n, num)  # (N, C)
        shares = np.nan_to_num(sizes[:, None] * mixes)
        shares[:, shares.sum(0) <= 0] = 1.0
        return raised(_dealt(labels, classes, shares / shares.sum(0), rng), self.min_partition_size, rng)


@dataclass(frozen=True)
class ClassPartition:
    """Each client has some of the classes; each class is spread over those who have it, by weights |N(1, spread)|.

    How many classes a client has is uniform from `min_classes` to `max_classes`; all is drawn anew until each class has
    a client.

    Args:
        num_partitions: N, clients.
        partition_by: the column with the labels.
        min_classes: >= 1.
        max_classes: at most as many as there are.
        spread: standard deviation of the weights, >= 0.
        min_partition_size: examples every client has at least; those below receive random ones from the largest.

    Example:
        >>> import torch
        >>> labels = torch.arange(90) % 3
        >>> parts = ClassPartition(5, min_classes=1, max_classes=2, min_partition_size=1).split({"y": labels}, seed=1)
        >>> all(len(labels[part].unique()) <= 2 for part in parts)
        True
    """

    num_partitions: int
    partition_by: str = "y"
    min_classes: int = 3
    max_classes: int = 5
    spread: float = 0.1
    min_partition_size: int = 10

    def __post_init__(self) -> None:
        check_num(self, self.num_partitions)
        check_minimum(self, self.min_partition_size)
        if not 1 <= self.min_classes <= self.max_classes:
            raise ValueError(
                f"ClassPartition(min_classes={self.min_classes}, max_classes={self.max_classes}): must ascend from 1, "
                f"got {self.min_classes} and {self.max_classes}. 3 to 5 is usual."
            )
        if not self.spread >= 0:
            raise ValueError(f"ClassPartition(spread={self.spread}): must be at least 0, got {self.spread}. Use 0.1.")

    def split(self, columns: Mapping[str, Tensor], seed: int) -> list[Positions]:
        num, rng = self.num_partitions, numpy_generator(seed, "partition")
        enough(self, columns, num, self.min_partition_size)
        labels = labels_of(self, columns, self.partition_by)
        classes = np.unique(labels)
        if self.max_classes > len(classes) or num * self.max_classes < len(classes):
            raise DataError(
                f"{self}: needs max_classes from {-(-len(classes) // num)} to {len(classes)}, all classes, "
                f"got {self.max_classes}. Choose one of these."
            )
        for _ in range(_TRIES):
            has = np.zeros((num, len(classes)), bool)
            for client in range(num):
                many = rng.integers(self.min_classes, self.max_classes + 1)
                has[client, rng.choice(len(classes), many, replace=False)] = True
            if has.any(0).all():
                break
        else:
            raise DataError(f"{self}: must leave no class without a client, got one. Raise max_classes.")
        weights = has * np.abs(rng.normal(1.0, self.spread, has.shape))
        return raised(_dealt(labels, classes, weights / weights.sum(0), rng), self.min_partition_size, rng)


def _dealt(
    labels: NDArray[np.int64], classes: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> list[Positions]:
    """Each class dealt out by its column of the shares, (N, C)."""
    num, owner = len(shares), np.empty(len(labels), np.int64)
    for c, label in enumerate(classes):
        examples = rng.permutation(np.flatnonzero(labels == label))
        ends = ends_of(rng, shares[:, c], len(examples))
        ends[np.flatnonzero(shares[:, c])[-1] :] = len(examples)  # whatever was rounded goes to one who has the class
        owner[examples] = np.repeat(np.arange(num), np.diff(ends, prepend=0))
    return by_owner(owner, num)

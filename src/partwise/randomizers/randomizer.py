"""What randomisers have in common: how an answer is perturbed, and what many of them say of the truth.

Notation: one of k values; n reports; e = exp(epsilon). A report supports its true value with probability p and any
other with probability q; c_v reports support v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.rng import Rng

__all__ = ["MAX_EPSILON", "Randomizer", "check_domain", "check_values", "combined", "normalized", "unbiased"]

MAX_EPSILON = 16.0  # beyond it an answer is as good as the truth


@runtime_checkable
class Randomizer(Protocol):
    """Perturbs a value so that no report is more than exp(epsilon) times as likely under one value as under another.

    Every fresh report spends epsilon: a client that is asked the same again gives the answer that it gave.
    """

    @property
    def epsilon(self) -> float: ...

    @property
    def size(self) -> int:
        """k."""
        ...

    def report(self, values: Tensor, rng: Rng) -> Tensor:
        """One report for each value.

        Args:
            values: (n,) int64 in [0, k).
            rng: passed on to the source of randomness.

        Returns:
            (n, ...), of a form of its own.

        Raises:
            ValueError: a value outside.
        """
        ...

    def estimate(self, reports: Tensor) -> Tensor:
        """(k,) float64, what share of the clients has each value; unbiased, so that it may be below 0 or above 1.

        Reports that no honest client makes count for nothing.
        """
        ...

    def variance(self, num_reports: int) -> float:
        """Of the estimate of a value that hardly anybody has."""
        ...


def check_values(part: str, size: int, epsilon: float) -> None:
    """Refuse a domain or a level of privacy that means nothing."""
    if size < 2:
        raise ValueError(f"{part}(size={size}): must be at least 2, got {size}. One value needs no question.")
    if not 0 < epsilon <= MAX_EPSILON:
        raise ValueError(
            f"{part}(epsilon={epsilon}): must lie in (0, {MAX_EPSILON:g}], got {epsilon}. 1 to 4 is usual; above the "
            "bound an answer is as good as the truth."
        )


def check_domain(part: Randomizer, values: Tensor) -> None:
    """Refuse values that are not among the k: what is reported of them would not be perturbed as it should."""
    is_whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    if not is_whole or bool(((values < 0) | (values >= part.size)).any()):
        # Which they are is not said: an answer is what is to be hidden.
        raise ValueError(
            f"{part!r}: values must be whole numbers in 0..{part.size - 1}, got others. Number what can be answered "
            "from 0 on, with a number for all else."
        )


def unbiased(support: Tensor, num_reports: int, p: float, q: float) -> Tensor:
    """(c_v / n - q) / (p - q)."""
    if not num_reports:
        return torch.zeros(len(support), dtype=torch.float64)
    return (support.double() / num_reports - q) / (p - q)


def normalized(estimate: Tensor) -> Tensor:
    """Estimates as shares: none below 0, and 1 in all. Once, at the end: what is done to it is no longer unbiased.

    Source: Wang et al., "Locally differentially private frequency estimation with consistency", NDSS 2020,
        arXiv:1905.08320, Norm-Sub.

    Example:
        >>> normalized(torch.tensor([0.7, 0.4, 0.1, -0.2], dtype=torch.float64))
        tensor([0.6333, 0.3333, 0.0333, 0.0000], dtype=torch.float64)
    """
    ordered = estimate.double().sort(descending=True).values
    kept = torch.arange(1, len(ordered) + 1)
    over = (ordered.cumsum(0) - 1) / kept
    shift = over[int((ordered > over).nonzero().max())]
    return (estimate.double() - shift).clamp(min=0)


def combined(groups: Sequence[tuple[Randomizer, Tensor]]) -> Tensor:
    """One estimate from clients with different levels of privacy, each by how much it knows.

    The mean of the groups' estimates, weighted by one over their variances.

    Args:
        groups: of each level, the randomiser and the reports.
    """
    weights = [1 / part.variance(len(reports)) for part, reports in groups if len(reports)]
    found = [part.estimate(reports) for part, reports in groups if len(reports)]
    return torch.stack([w * f for w, f in zip(weights, found, strict=True)]).sum(0) / sum(weights)

"""Randomised response over k values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.randomness import Randomness, SimulatedRandomness, chance, uniform_below
from partwise.core.rng import Rng
from partwise.randomizers.randomizer import check_domain, check_values, unbiased

__all__ = ["RandomizedResponse"]


@dataclass(frozen=True)
class RandomizedResponse:
    """The truth with probability p = e/(e + k - 1), each other value with q = 1/(e + k - 1).

    Args:
        size: k, number of values, >= 2.
        epsilon: of one report, in (0, 16].
        randomness: where it comes from. The default protects nothing.

    Source: Kairouz, Bonawitz and Ramage, "Discrete distribution estimation under local privacy", ICML 2016,
        arXiv:1602.07387.

    Example:
        >>> RandomizedResponse(4, math.log(3)).estimate(torch.tensor([0] * 40 + [1] * 30 + [2] * 20 + [3] * 10))
        tensor([ 0.7000,  0.4000,  0.1000, -0.2000], dtype=torch.float64)
    """

    size: int
    epsilon: float
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_values("RandomizedResponse", self.size, self.epsilon)

    @property
    def chances(self) -> tuple[float, float]:
        """p and q."""
        q = 1 / (math.exp(self.epsilon) + self.size - 1)
        return math.exp(self.epsilon) * q, q

    def report(self, values: Tensor, rng: Rng) -> Tensor:
        check_domain(self, values)
        is_true = chance(self.chances[0], len(values), self.randomness, rng)
        other = uniform_below(self.size - 1, len(values), self.randomness, rng)
        return torch.where(is_true, values, other + (other >= values))

    def estimate(self, reports: Tensor) -> Tensor:
        reports = reports[(reports >= 0) & (reports < self.size)]
        return unbiased(torch.bincount(reports, minlength=self.size), len(reports), *self.chances)

    def variance(self, num_reports: int) -> float:
        p, q = self.chances
        return q * (1 - q) / (p - q) ** 2 / num_reports

"""Unary encoding: a bit for each value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.randomness import Randomness, SimulatedRandomness, chance
from partwise.core.rng import Rng
from partwise.randomizers.randomizer import check_domain, check_values, unbiased

__all__ = ["UnaryEncoding"]

_SIGMAS = 6.0  # an honest report has more ones than so once in a billion


@dataclass(frozen=True)
class UnaryEncoding:
    """OUE: k bits; that of the true value is 1 with probability p = 1/2, each other with q = 1/(e + 1).

    Args:
        size: k, number of values, >= 2.
        epsilon: of one report, in (0, 16].
        randomness: where it comes from. The default protects nothing.

    Source: Wang et al., "Locally differentially private protocols for frequency estimation", USENIX Security 2017.
    Differs: reports with more ones than an honest client has by chance count for nothing, see `is_plausible`.
    """

    size: int
    epsilon: float
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_values("UnaryEncoding", self.size, self.epsilon)

    @property
    def chances(self) -> tuple[float, float]:
        """p and q."""
        return 0.5, 1 / (math.exp(self.epsilon) + 1)

    def report(self, values: Tensor, rng: Rng) -> Tensor:
        check_domain(self, values)
        n, (p, q) = len(values), self.chances
        bits = chance(q, n * self.size, self.randomness, rng).reshape(n, self.size)
        bits[torch.arange(n), values] = chance(p, n, self.randomness, rng)
        return bits

    def is_plausible(self, reports: Tensor) -> Tensor:
        """(n,) bool: whether a report has no more ones than 1/2 + (k - 1) q and six standard deviations.

        One client that sets all bits would count for every value at once.
        """
        q = self.chances[1]
        usual = 0.5 + (self.size - 1) * q
        spread = math.sqrt(0.25 + (self.size - 1) * q * (1 - q))
        return reports.sum(1) <= usual + _SIGMAS * spread

    def estimate(self, reports: Tensor) -> Tensor:
        kept = reports[self.is_plausible(reports)]
        return unbiased(kept.sum(0), len(kept), *self.chances)

    def variance(self, num_reports: int) -> float:
        e = math.exp(self.epsilon)
        return 4 * e / (e - 1) ** 2 / num_reports

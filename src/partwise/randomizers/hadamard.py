"""Hadamard response: one index, and estimates by one fast transform."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.randomness import Randomness, SimulatedRandomness, chance, uniform_below
from partwise.core.rng import Rng
from partwise.randomizers.randomizer import check_domain, check_values

__all__ = ["HadamardResponse"]


@dataclass(frozen=True)
class HadamardResponse:
    """An index in [K], K = 2^ceil(log2(k + 1)): where row v + 1 is +1 with probability e/(e + 1), else where it is -1.

    Args:
        size: k, number of values, >= 2.
        epsilon: of one report, in (0, 16].
        randomness: where it comes from. The default protects nothing.

    Source: Acharya, Sun and Zhang, "Hadamard response: estimating distributions privately, efficiently, and with little
        communication", AISTATS 2019, arXiv:1802.04705.
    """

    size: int
    epsilon: float
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_values("HadamardResponse", self.size, self.epsilon)

    @property
    def order(self) -> int:
        """K."""
        return 1 << self.size.bit_length()

    def report(self, values: Tensor, rng: Rng) -> Tensor:
        check_domain(self, values)
        e, row = math.exp(self.epsilon), values + 1
        at = uniform_below(self.order, len(values), self.randomness, rng)
        is_plus = chance(e / (e + 1), len(values), self.randomness, rng)
        # An index on the wrong side is moved to the other by a bit of the row, which pairs the two sides.
        return torch.where((_parity(at & row) == 0) == is_plus, at, at ^ (row & -row))

    def estimate(self, reports: Tensor) -> Tensor:
        reports = reports[(reports >= 0) & (reports < self.order)]
        e, n = math.exp(self.epsilon), len(reports)
        if not n:
            return torch.zeros(self.size, dtype=torch.float64)
        sums, half = torch.bincount(reports, minlength=self.order).double(), 1
        while half < self.order:  # plus side minus minus side, of every row
            pairs = sums.reshape(-1, 2, half)
            sums = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1).reshape(-1)
            half *= 2
        return (e + 1) / (e - 1) * sums[1 : self.size + 1] / n

    def variance(self, num_reports: int) -> float:
        e = math.exp(self.epsilon)
        return ((e + 1) / (e - 1)) ** 2 / num_reports


def _parity(x: Tensor) -> Tensor:
    for shift in (32, 16, 8, 4, 2, 1):
        x = x ^ (x >> shift)
    return x & 1

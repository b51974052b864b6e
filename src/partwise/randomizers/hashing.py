"""Local hashing: few bits for many values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from partwise.core.randomness import Randomness, SimulatedRandomness, chance, uniform_below
from partwise.core.rng import Rng
from partwise.randomizers.randomizer import check_domain, check_values, unbiased

__all__ = ["LocalHashing"]


@dataclass(frozen=True)
class LocalHashing:
    """OLH: a hash function of one's own, and its value among g = round(e) + 1, by randomised response.

    A report supports every value that its function maps to what it says, so that q = 1/g.

    Args:
        size: k, number of values, >= 2.
        epsilon: of one report, in (0, 16].
        randomness: where it comes from. The default protects nothing.

    Source: Wang et al., "Locally differentially private protocols for frequency estimation", USENIX Security 2017.
    Differs: the functions are SplitMix64 with a seed of 62 bits, drawn for each report.
    """

    size: int
    epsilon: float
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_values("LocalHashing", self.size, self.epsilon)

    @property
    def range(self) -> int:
        """g."""
        return round(math.exp(self.epsilon)) + 1

    @property
    def chances(self) -> tuple[float, float]:
        """p and q."""
        e = math.exp(self.epsilon)
        return e / (e + self.range - 1), 1 / self.range

    def report(self, values: Tensor, rng: Rng) -> Tensor:
        """(n, 2) int64: the function's seed, and the value."""
        check_domain(self, values)
        n, g = len(values), self.range
        seeds = self.randomness.bits(n, rng).cpu()
        hashed = _hashed(seeds, values, g)
        is_true = chance(self.chances[0], n, self.randomness, rng)
        other = uniform_below(g - 1, n, self.randomness, rng)
        return torch.stack((seeds, torch.where(is_true, hashed, other + (other >= hashed))), dim=1)

    def estimate(self, reports: Tensor) -> Tensor:
        seeds, said = reports[(reports[:, 1] >= 0) & (reports[:, 1] < self.range)].unbind(1)
        support = [int((_hashed(seeds, torch.full_like(seeds, v), self.range) == said).sum()) for v in range(self.size)]
        return unbiased(torch.tensor(support), len(said), *self.chances)

    def variance(self, num_reports: int) -> float:
        p, q = self.chances
        return q * (1 - q) / (p - q) ** 2 / num_reports


def _hashed(seeds: Tensor, values: Tensor, bound: int) -> Tensor:
    """SplitMix64 of (seed, value), modulo `bound`: (n,) int64."""
    steps = values.numpy().astype(np.uint64) + np.uint64(1)
    x = seeds.numpy().astype(np.uint64) + steps * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((x ^ (x >> np.uint64(31))) % np.uint64(bound)).astype(np.int64))

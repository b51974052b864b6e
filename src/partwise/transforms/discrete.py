"""The discrete Gaussian, exactly: integers, and coins whose chance is a fraction; no number is rounded on the way.

Notation: N_Z(0, s²) has P(x) proportional to exp(-x² / (2 s²)) on the integers.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from partwise.core.randomness import Randomness, uniform_below
from partwise.core.rng import Rng

__all__ = ["bernoulli_exp", "discrete_gaussian", "discrete_laplace"]

_MOST = 2**24  # numerator of a variance: what is made of it stays below 2**63


def discrete_gaussian(count: int, variance: Fraction, randomness: Randomness, rng: Rng) -> Tensor:
    """Independent draws from N_Z(0, s²), whose variance is at most s².

    Args:
        count: how many.
        variance: s² > 0, with a numerator of at most 2**24.
        randomness: where they come from.
        rng: passed on to it.

    Returns:
        (count,) int64.

    Source: Canonne, Kamath and Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020,
        arXiv:2004.00010, algorithm 3.

    Example:
        >>> from partwise.core.randomness import SimulatedRandomness
        >>> draws = discrete_gaussian(1000, Fraction(9), SimulatedRandomness(), torch.Generator())
        >>> 7 < float(draws.double().var()) < 11
        True
    """
    p, q = variance.numerator, variance.denominator
    if not 0 < p <= _MOST:
        raise ValueError(
            f"discrete_gaussian(variance={variance}): must be above 0 with a numerator of at most 2**24, got {p}. "
            "Take a coarser grid."
        )
    t = math.isqrt(p // q) + 1
    found, left = [], count
    while left:
        draws = discrete_laplace(2 * left + 16, t, randomness, rng)
        # exp(-(|y| - s²/t)² / (2 s²)), as the fraction (|y| t q - p)² over 2 p q t²
        keep = bernoulli_exp((draws.abs() * (t * q) - p) ** 2, 2 * p * q * t * t, randomness, rng)
        found.append(draws[keep][:left])
        left -= len(found[-1])
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def discrete_laplace(count: int, scale: int, randomness: Randomness, rng: Rng) -> Tensor:
    """Independent draws with P(x) proportional to exp(-|x| / scale): (count,) int64.

    Source: Canonne, Kamath and Steinke, arXiv:2004.00010, algorithm 2.
    """
    found, left = [], count
    while left:
        n = 2 * left + 16
        rest = uniform_below(scale, n, randomness, rng)
        rest = rest[bernoulli_exp(rest, scale, randomness, rng)]
        whole = torch.zeros_like(rest)
        open_ = torch.arange(len(rest))
        while len(open_):
            open_ = open_[bernoulli_exp(torch.ones(len(open_), dtype=torch.int64), 1, randomness, rng)]
            whole[open_] += 1
        size, is_negative = rest + scale * whole, uniform_below(2, len(rest), randomness, rng) == 1
        draws = torch.where(is_negative, -size, size)[~(is_negative & (size == 0))]
        found.append(draws[:left])
        left -= len(found[-1])
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def bernoulli_exp(numerator: Tensor, denominator: int, randomness: Randomness, rng: Rng) -> Tensor:
    """Coins that are True with probability exp(-numerator / denominator).

    Args:
        numerator: (n,) int64, >= 0.
        denominator: > 0.
        randomness: where they come from.
        rng: passed on to it.

    Returns:
        (n,) bool.

    Source: Canonne, Kamath and Steinke, arXiv:2004.00010, algorithm 1.
    """
    whole, rest = numerator // denominator, numerator % denominator
    found = _exp_of_at_most_one(rest, denominator, randomness, rng)
    open_ = (found & (whole > 0)).nonzero().reshape(-1)
    while len(open_):  # once more for each whole one, until it fails
        one = torch.ones(len(open_), dtype=torch.int64)
        stays = _exp_of_at_most_one(one, 1, randomness, rng)
        found[open_[~stays]] = False
        whole[open_] -= 1
        open_ = open_[stays & (whole[open_] > 0)]
    return found


def _exp_of_at_most_one(numerator: Tensor, denominator: int, randomness: Randomness, rng: Rng) -> Tensor:
    """exp(-x) = P(the first k with no success of probability x/k is odd)."""
    found = torch.zeros(len(numerator), dtype=torch.bool)
    open_, k = torch.arange(len(numerator)), 1
    while len(open_):
        hits = uniform_below(denominator * k, len(open_), randomness, rng) < numerator[open_]
        found[open_[~hits]] = k % 2 == 1
        open_, k = open_[hits], k + 1
    return found

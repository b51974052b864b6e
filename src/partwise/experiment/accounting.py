"""What noise is worth: epsilon of Gaussian mechanisms, alone, composed, and amplified by sampling.

Notation: z is the noise multiplier, standard deviation over sensitivity; mu = 1/z for one release, and the root of the
sum of squares for several. q is the sampling rate. Epsilon is the smallest for which (epsilon, delta)-differential
privacy is proved; what is proved by the package `dp-accounting` needs the extra `dp`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any, Literal

__all__ = [
    "Accountant",
    "distributed_rho",
    "gaussian_delta",
    "gaussian_epsilon",
    "multiplier_for",
    "noise_of_sums",
    "poisson_epsilon",
    "without_replacement_epsilon",
    "zcdp_epsilon",
]

Accountant = Literal["pld", "rdp"]
Releases = int | Mapping[int, int]

_GRID, _STEPS = 1e-3, 2**16  # of privacy losses: the longest step, and how many there are; rounding is upwards
_MOST = 1e6  # an epsilon beyond which nobody asks


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu), exact.

    Source: Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018, arXiv:1805.06530,
        theorem 8; Dong, Roth and Su, "Gaussian differential privacy", arXiv:1905.02383, corollary 2.13.
    """
    if mu == 0:
        return 0.0
    one, other = _log_normal_cdf(mu / 2 - epsilon / mu), epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu)
    return math.exp(one) * -math.expm1(min(0.0, other - one))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of Gaussian mechanisms whose mu, together, is this; 0 where delta alone covers it.

    Args:
        mu: sqrt(k)/z for k releases of noise multiplier z.
        delta: in (0, 1).

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3), round(gaussian_epsilon(math.sqrt(10) / 5.0, 1e-5), 3)
        (4.377, 2.594)
    """
    _check_delta(delta)
    if mu == math.inf:
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    return _lowest(lambda epsilon: gaussian_delta(mu, epsilon) <= delta, 0.0, high)


def multiplier_for(epsilon: float, of: Callable[[float], float]) -> float:
    """The smallest noise multiplier whose epsilon is at most this; at most 1e-4 of it too large, never too small.

    Args:
        epsilon: > 0.
        of: the epsilon of a noise multiplier; more noise gives less.
    """
    if not 0 < epsilon < _MOST:
        raise ValueError(
            f"multiplier_for(epsilon={epsilon}): must be above 0 and finite, got {epsilon}. 1 to 8 is usual."
        )
    low, high = 0.0, 1.0
    while of(high) > epsilon:
        low, high = high, 2 * high
    if low == 0:
        low = 0.5
        while low > 1e-3 and of(low) <= epsilon:
            high, low = low, low / 2
    return _lowest(lambda z: of(z) <= epsilon, low, high, 1e-4)


def poisson_epsilon(
    noise_multiplier: float, rate: float, releases: Releases, delta: float, accountant: Accountant = "pld"
) -> float:
    """Of Gaussian releases, each over clients that were drawn independently with probability `rate`; add or remove one.

    Args:
        noise_multiplier: z.
        rate: q, in (0, 1]; for 1 it is the Gaussian mechanism itself.
        releases: how many, each over a draw of its own; or k -> how many draws that k releases each are made of.
        delta: in (0, 1).
        accountant: `pld` is tight up to a grid; `rdp` is an upper bound that other programs can be compared by.

    Source: Koskela et al., "Computing tight differential privacy guarantees using FFT", AISTATS 2020, arXiv:1906.03049;
        Mironov, Talwar and Zhang, "Rényi differential privacy of the sampled Gaussian mechanism", arXiv:1908.10530.

    Example:
        >>> round(poisson_epsilon(1.0, 0.01, 1000, 1e-5), 2)
        1.83
    """
    _check_delta(delta)
    if not 0 < rate <= 1:
        raise ValueError(f"poisson_epsilon(rate={rate}): must lie in (0, 1], got {rate}. It is cohort over population.")
    draws = _draws(releases)
    if not draws:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if accountant == "rdp":
        dp = _library()
        return _rdp(draws, lambda k: dp.PoissonSampledDpEvent(rate, _gaussian(noise_multiplier, k)), delta)
    if rate == 1:
        return gaussian_epsilon(math.sqrt(sum(k * n for k, n in draws.items())) / noise_multiplier, delta)
    multipliers = {k: noise_multiplier / math.sqrt(k) for k in draws}
    step = min(_step(z, rate) for z in multipliers.values())  # only what is on one grid can be composed
    losses = [_losses(multipliers[k], rate, step).self_compose(n) for k, n in draws.items()]
    return float(reduce(lambda one, other: one.compose(other), losses).get_epsilon_for_delta(delta))


def without_replacement_epsilon(
    noise_multiplier: float, size: int, population: int, releases: Releases, *, delta: float
) -> float:
    """Of Gaussian releases, each over `size` of the clients, all sets equally likely; one client replaced by another.

    Args:
        noise_multiplier: z in terms of the sensitivity to a replacement, which is twice the clip norm.
        size: of the cohort, in 1..N.
        population: N.
        releases: as of `poisson_epsilon`.
        delta: in (0, 1).

    Source: Wang, Balle and Kasiviswanathan, "Subsampled Rényi differential privacy and analytical moments accountant",
        AISTATS 2019, arXiv:1808.00087, theorem 27.

    Example:
        >>> round(without_replacement_epsilon(1.0, 10, 1000, 1000, delta=1e-5), 3)
        3.576
    """
    _check_delta(delta)
    if not 1 <= size <= population:
        raise ValueError(
            f"without_replacement_epsilon(size={size}): must lie in 1..{population}, the population, got {size}. It is "
            "the cohort."
        )
    draws = _draws(releases)
    if not draws:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    dp = _library()

    def event(k: int) -> Any:
        return dp.SampledWithoutReplacementDpEvent(population, size, _gaussian(noise_multiplier, k))

    return _rdp(draws, event, delta, dp.NeighboringRelation.REPLACE_ONE)


def distributed_rho(rounded_norm: float, variance: float, clients: int, dim: int) -> float:
    """zCDP of one sum to which each of `clients` adds discrete Gaussian noise; their sum is almost such noise.

    rho = e²/2, e = min(sqrt(D²/(n s²) + tau d/2), D/(sqrt(n) s) + tau sqrt(d)),
    tau = 10 sum over k < n of exp(-2 pi² s² k/(k+1)).

    Args:
        rounded_norm: D, the most that one client's value has on the grid.
        variance: s² of each client's noise, in grid steps squared.
        clients: n that add noise; no more than are sure to.
        dim: d.

    Source: Kairouz, Liu and Steinke, arXiv:2102.06387, theorem 1.
    """
    tau = noise_of_sums(variance, clients)
    one = math.sqrt(rounded_norm**2 / (clients * variance) + tau * dim / 2)
    other = rounded_norm / math.sqrt(clients * variance) + tau * math.sqrt(dim)
    return min(one, other) ** 2 / 2


def noise_of_sums(variance: float, clients: int) -> float:
    """tau: how far the sum of n discrete Gaussians is from one of n times the variance, in the log of the ratio."""
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, clients))


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Of a mechanism that is rho-zCDP, by the best conversion over Rényi orders.

    Source: Bun and Steinke, "Concentrated differential privacy", TCC 2016, arXiv:1605.02065; Canonne, Kamath and
        Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, arXiv:2004.00010, proposition 12.

    Example:
        >>> round(zcdp_epsilon(0.22, 1e-5), 3)
        2.968
    """
    _check_delta(delta)
    if rho in (0.0, math.inf):
        return rho
    event = _library().ZCDpEvent(rho)
    return _rdp({1: 1}, lambda _: event, delta)


# ---- inside ---------------------------------------------------------------------------------------------------------


def _draws(releases: Releases) -> dict[int, int]:
    """How many releases of one draw -> how many draws."""
    found = {1: releases} if isinstance(releases, int) else releases
    return {k: n for k, n in sorted(found.items()) if k and n}


def _gaussian(noise_multiplier: float, times: int) -> Any:
    """So many releases of the same draw, which are one of less noise."""
    return _library().GaussianDpEvent(noise_multiplier / math.sqrt(times))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: must lie in (0, 1), got {delta}. Take less than one over the population.")


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError(
            "accounting for sampling needs the package dp-accounting, got none. Install it: pip install 'partwise[dp]'."
        ) from error
    return dp_accounting


def _rdp(draws: Mapping[int, int], event: Callable[[int], Any], delta: float, relation: Any = None) -> float:
    """Of so many draws each, with what is released of them."""
    from dp_accounting import rdp

    with _quietly():
        found = [(n, *_orders(event(k), relation)) for k, n in draws.items()]
        total = sum(n * spent for n, _, spent in found)
        return float(rdp.compute_epsilon(found[0][1], total, delta)[0])


@lru_cache(maxsize=32)
def _orders(event: Any, relation: Any) -> Any:
    """The Rényi orders, and the divergence at each of one event; those of several add up."""
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(**({} if relation is None else {"neighboring_relation": relation}))
    accountant.compose(event)
    return accountant.orders, accountant.rdp


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the library says of orders that it leaves out, which only makes its bound higher."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@lru_cache(maxsize=32)
def _losses(noise_multiplier: float, rate: float, step: float) -> Any:
    """The distribution of the privacy loss of one release; composing it is quick."""
    _library()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=rate, value_discretization_interval=step
    )


def _step(noise_multiplier: float, rate: float) -> float:
    """At most half of the deviation of one loss, unless that takes too many steps to the largest there may be.

    What is shorter than a step is rounded to as much as it is, or more, in each of thousands of releases.
    """
    deviation = rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    largest = math.log1p(rate * math.expm1(min((1 + 20 * noise_multiplier) / (2 * noise_multiplier**2), 500.0)))
    return min(_GRID, max(deviation / 2, largest / _STEPS))


def _lowest(holds: Callable[[float], bool], low: float, high: float, relative: float = 1e-9) -> float:
    """The lowest number for which something holds that holds for `high` and, from some number on, for all."""
    for _ in range(200):
        if high - low <= relative * high:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_normal_cdf(x: float) -> float:
    """log Phi(x), also where Phi(x) is too small for a number."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / x**2 + 3 / x**4)

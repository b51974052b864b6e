"""Paces, links and memories drawn from distributions, and paces that change in time.

Shapes: N clients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real

import numpy as np

from partwise.core.population import Client, Profile
from partwise.populations.distributions import Distribution
from partwise.populations.distributions import LogNormal as LogNormally
from partwise.populations.hashing import key, shares
from partwise.populations.profiles import BOUNDS, Clients, Constant, ProfileArrays, Profiles, Reals
from partwise.populations.slots import check_above_zero, slot_of

__all__ = ["Drawn", "Drift"]


@dataclass(frozen=True)
class Drawn(Profiles):
    """Each quantity drawn from a distribution of its own, once per client.

    Args:
        seconds_per_step: pace, seconds: a number for all, or a distribution. Default: local steps take no time.
        uplink: bytes per second. Default: sending takes no time.
        downlink: bytes per second.
        memory: bytes for the submodel.
        width: largest width ratio, in (0, 1], alike for all.
        seed: of the draws; profiles do not follow the experiment's seed, the world stays as it is.

    Example:
        >>> from partwise.populations.distributions import Exponential
        >>> world = Drawn(Exponential(mean=0.05), uplink=1e6)
        >>> world.profile(3) == world.profile(3) != world.profile(4)
        True
    """

    seconds_per_step: float | Distribution = 0.0
    uplink: float | Distribution = math.inf
    downlink: float | Distribution = math.inf
    memory: float | Distribution = math.inf
    width: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, bound in BOUNDS.items():
            of = getattr(self, name)
            least = np.array([float(of)]) if isinstance(of, Real) else of.quantile(np.array([2.0**-53]))
            if not bound.holds(least).all():
                raise ValueError(f"Drawn({name}={of}): {name} must be {bound.rule}, got {least[0]}. See help(Drawn).")

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        return _profile(self, client)

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        return ProfileArrays(*(_column(self, name, clients) for name in BOUNDS))


def _column(world: Drawn, name: str, clients: Clients) -> Reals:
    of = getattr(world, name)
    if isinstance(of, Real):
        return np.full(len(clients), float(of))
    found: Reals = of.quantile(shares(key(world.seed, f"drawn {name}"), clients))
    return found


@lru_cache(maxsize=1 << 14)  # a runtime asks for every message, of a cohort that is mostly smaller
def _profile(world: Drawn, client: Client) -> Profile:
    return Profile(**{name: float(_column(world, name, np.array([client]))[0]) for name in BOUNDS})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Drift(Profiles):
    """Paces that change: each is multiplied by exp(sigma * z), z ~ N(0, 1) drawn anew per client and period.

    Args:
        base: the profiles whose paces are multiplied.
        sigma: spread of the logarithm, >= 0.
        period_seconds: how long a pace stays, > 0 and finite; all clients' change together. A dispatch goes by the
            pace at the moment at which its training begins.
        seed: of the draws.

    Example:
        >>> world = Drift(Constant(seconds_per_step=0.1), period_seconds=60.0)
        >>> world.profile(3, 59.0) == world.profile(3, 1.0) != world.profile(3, 61.0)
        True
    """

    base: Profiles = field(default_factory=Constant)
    sigma: float = 0.3
    period_seconds: float = 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(
                f"Drift(sigma={self.sigma}): sigma must be finite and at least 0, got {self.sigma}. "
                "0.3: one pace in six is over 1.35 times as long."
            )
        check_above_zero(self, "period_seconds", self.period_seconds)

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        found = self.base.profile(client, now)
        factor = _factor(self.seed, self.sigma, client, slot_of(now, self.period_seconds))
        return found._replace(seconds_per_step=found.seconds_per_step * factor)

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        found = self.base.table(clients, now)
        factors = _factors(self.seed, self.sigma, clients, slot_of(now, self.period_seconds))
        return replace(found, seconds_per_step=found.seconds_per_step * factors)


def _factors(seed: int, sigma: float, clients: Clients, period: int) -> Reals:
    return LogNormally(1.0, sigma).quantile(shares(key(seed, "drift"), clients, period))


@lru_cache(maxsize=1 << 14)
def _factor(seed: int, sigma: float, client: Client, period: int) -> float:
    return float(_factors(seed, sigma, np.array([client]), period)[0])

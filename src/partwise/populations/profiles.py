"""How fast clients are, computed when asked: no object per client is kept.

Shapes: N clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from struct import Struct
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from partwise.core.errors import DataError
from partwise.core.population import Client, Profile, Reals
from partwise.core.rng import numpy_generator

__all__ = ["BOUNDS", "Bound", "Clients", "Constant", "LogNormal", "ProfileArrays", "Profiles", "Reals", "Widths"]

Clients = NDArray[np.int64]
_ROW = Struct("5dq")  # a profile


class Bound(NamedTuple):
    """What values of one quantity may be."""

    rule: str
    holds: Callable[[Reals], NDArray[np.bool_]]


def _above_zero(values: Reals) -> NDArray[np.bool_]:
    return values > 0


BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "seconds_per_step": Bound("finite and at least 0", lambda values: (values >= 0) & (values < np.inf)),
        "uplink": Bound("above 0", _above_zero),
        "downlink": Bound("above 0", _above_zero),
        "memory": Bound("above 0", _above_zero),
        "width": Bound("in (0, 1]", lambda values: (values > 0) & (values <= 1)),
    }
)


class Profiles(Protocol):
    """Client number and moment to profile; the same answer every time.

    Of a part that derives from this class, only `profile` must be written.
    """

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        """How fast the client is at a moment."""
        ...

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        """How fast these clients (N,) are, all at once."""
        found = np.array([self.profile(int(client), now)[:5] for client in clients], np.float64).reshape(-1, 5)
        return ProfileArrays(*found.T.copy())

    def speeds(self, clients: Sequence[Client], now: float = 0.0) -> Reals:
        """Pace, uplink and downlink of these clients, (n, 3)."""
        return self.table(np.asarray(clients, np.int64), now).speeds(range(len(clients)))


@dataclass(frozen=True, eq=False)
class ProfileArrays(Profiles):
    """Profiles that are kept: a number per client and quantity, twice: 88 bytes for each client.

    Args:
        seconds_per_step: (N,), pace, finite and >= 0.
        uplink: (N,), bytes per second, > 0. Default: sending takes no time.
        downlink: (N,), bytes per second, > 0.
        memory: (N,), bytes for the submodel, > 0.
        width: (N,), largest width ratio, in (0, 1].

    Raises:
        DataError: arrays of unequal length, a value out of range; later, a client beyond the arrays.

    Example:
        >>> ProfileArrays(np.array([0.1, 0.3])).profile(1).seconds_per_step
        0.3
    """

    seconds_per_step: Reals = field(repr=False)
    uplink: Reals | None = field(default=None, repr=False)
    downlink: Reals | None = field(default=None, repr=False)
    memory: Reals | None = field(default=None, repr=False)
    width: Reals | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.seconds_per_step)
        for name, otherwise in Profile._field_defaults.items():
            if name not in BOUNDS:
                continue
            given = getattr(self, name)
            values = np.full(n, otherwise) if given is None else np.ascontiguousarray(given, np.float64)
            if values.shape != (n,):
                raise DataError(
                    f"ProfileArrays(): needs one number per client, {n} as in seconds_per_step, got {values.shape} for "
                    f"{name}. Give one for each client."
                )
            wrong = (~BOUNDS[name].holds(values)).nonzero()[0]
            if len(wrong):
                raise DataError(
                    f"ProfileArrays(): {name} must be {BOUNDS[name].rule}, got {values[wrong[0]]} for client "
                    f"{wrong[0]}. Correct or drop it."
                )
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.seconds_per_step)

    @cached_property
    def _columns(self) -> tuple[Reals, ...]:
        return tuple(getattr(self, name) for name in BOUNDS)

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        if not 0 <= client < len(self.seconds_per_step):
            raise DataError(
                f"ProfileArrays(): has profiles of {len(self)} clients, got client {client}. "
                "Give one for each client of the population."
            )
        return tuple.__new__(Profile, _ROW.unpack_from(self._rows, client * _ROW.size))  # sooner than _make

    @cached_property
    def _rows(self) -> bytes:
        """Profile by profile: what belongs to one client lies together, and is had at once."""
        return np.stack([*self._columns, np.zeros(len(self))], 1).tobytes()  # 0.0 has the bits of block 0

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        return ProfileArrays(*(column[clients] for column in self._columns))

    def speeds(self, clients: Sequence[Client], now: float = 0.0) -> Reals:
        return np.frombuffer(self._rows).reshape(-1, len(BOUNDS) + 1)[clients, :3]  # they have been validated


@dataclass(frozen=True)
class Constant(Profiles):
    """Every client alike.

    Args:
        seconds_per_step: pace, >= 0. Default: local steps take no time.
        uplink: bytes per second, > 0. Default: sending takes no time.
        downlink: bytes per second, > 0.
        memory: bytes for the submodel, > 0.
        width: largest width ratio, in (0, 1].

    Example:
        >>> Constant(seconds_per_step=0.1).profile(7).seconds_per_step
        0.1
    """

    seconds_per_step: float = 0.0
    uplink: float = math.inf
    downlink: float = math.inf
    memory: float = math.inf
    width: float = 1.0

    def __post_init__(self) -> None:
        _check_speed(self, self.seconds_per_step >= 0, "seconds_per_step", "at least 0", self.seconds_per_step)
        _check_speed(self, self.seconds_per_step < math.inf, "seconds_per_step", "finite", self.seconds_per_step)
        for name in ("uplink", "downlink", "memory"):
            _check_speed(self, getattr(self, name) > 0, name, "above 0", getattr(self, name))
        _check_speed(self, 0 < self.width <= 1, "width", "in (0, 1]", self.width)

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        return Profile(self.seconds_per_step, self.uplink, self.downlink, self.memory, self.width)

    def table(self, clients: Clients, now: float = 0.0) -> ProfileArrays:
        return ProfileArrays(*(np.full(len(clients), getattr(self, name)) for name in BOUNDS))


@dataclass(frozen=True)
class LogNormal(Profiles):
    """Paces and links spread log-normally, independently of one another.

    value = median * exp(sigma * z), z ~ N(0, 1), drawn once per client and quantity.

    Args:
        seconds_per_step: median pace, seconds, >= 0.
        uplink: median bytes per second, > 0. Default: 0.5 MB/s.
        downlink: median bytes per second, > 0. Default: 2.5 MB/s.
        sigma: spread of the logarithm, finite and >= 0. 0.5: one client in six is slower than 1.65 medians.
        memory: bytes for the submodel, alike for all.
        width: largest width ratio, alike for all.
        seed: of the draws; profiles do not follow the experiment's seed, the world stays as it is.

    Example:
        >>> world = LogNormal(seconds_per_step=0.05)
        >>> world.profile(3) == world.profile(3) != world.profile(4)
        True
    """

    seconds_per_step: float = 0.05
    uplink: float = 0.5e6
    downlink: float = 2.5e6
    sigma: float = 0.5
    memory: float = math.inf
    width: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        Constant(self.seconds_per_step, self.uplink, self.downlink, self.memory, self.width)
        _check_speed(self, self.sigma >= 0, "sigma", "at least 0", self.sigma)
        _check_speed(self, self.sigma < math.inf, "sigma", "finite", self.sigma)

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        pace, up, down = _factors(self.seed, self.sigma, client)
        return Profile(
            self.seconds_per_step * pace,
            self.uplink * up,
            self.downlink * down,
            self.memory,
            self.width,
        )


@dataclass(frozen=True)
class Widths(Profiles):
    """Width ratios in given proportions; the rest of the profile comes from `base`.

    The proportions are exact in every run of `block` consecutive clients, where `block` is the smallest
    number that makes all shares whole (5 for five shares of 0.2); within a block the order is random. Shares for which
    that would take more than 1,000 clients are rounded to thousandths.

    Args:
        ratios: width ratios, each in (0, 1]. Default: HeteroFL's levels a to e.
        shares: one share per ratio, positive, none below a thousandth of their sum; made to sum to 1. Default (): equal
            shares.
        base: everything but the width.
        seed: of the order.

    Source: Diao, Ding, Tarokh, "HeteroFL", ICLR 2021, arXiv 2010.01264 (levels a to e).
    Differs: fixed assignment with exact proportions per block, not an independent draw per client.

    Example:
        >>> mix = Widths(ratios=(1.0, 0.25), shares=(1, 3))
        >>> sorted(mix.profile(c).width for c in range(4))
        [0.25, 0.25, 0.25, 1.0]
    """

    ratios: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    shares: tuple[float, ...] = ()
    base: Profiles = field(default_factory=Constant)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratios", "shares"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.ratios or not all(0 < r <= 1 for r in self.ratios):
            raise ValueError(
                f"Widths(ratios={self.ratios}): ratios must be in (0, 1], at least one. Use 1.0 for whole."
            )
        if self.shares and len(self.shares) != len(self.ratios):
            raise ValueError(
                f"Widths(): needs one share per ratio, got {len(self.shares)} shares for {len(self.ratios)} ratios. "
                "Leave shares out for equal ones."
            )
        if not all(0 < s < math.inf for s in self.shares):
            raise ValueError(
                f"Widths(shares={self.shares}): shares must be above 0 and finite. Leave the ratio out instead."
            )
        absent = set(range(len(self.shares))) - set(_levels(self.shares) if self.shares else ())
        if absent:
            raise ValueError(
                f"Widths(shares={self.shares}): shares must be at least a thousandth of their sum, got "
                f"{self.shares[min(absent)]}, which no client would have. Raise it, or leave the ratio out."
            )

    def profile(self, client: Client, now: float = 0.0) -> Profile:
        levels = _levels(self.shares or (1.0,) * len(self.ratios))
        block, place = divmod(client, len(levels))
        order = numpy_generator(self.seed, "width", block).permutation(len(levels))
        return self.base.profile(client, now)._replace(width=self.ratios[levels[int(order[place])]])


@lru_cache(maxsize=1 << 14)  # a runtime asks for every message, of a cohort that is mostly smaller
def _factors(seed: int, sigma: float, client: Client) -> tuple[float, float, float]:
    """exp(sigma * z), three times."""
    pace, up, down = np.exp(sigma * numpy_generator(seed, "profile", client).standard_normal(3)).tolist()
    return pace, up, down


@lru_cache(maxsize=64)
def _levels(shares: tuple[float, ...]) -> tuple[int, ...]:
    """One block: every level's number as often as its share says."""
    total = sum(shares)
    parts = [Fraction(s / total).limit_denominator(1000) for s in shares]
    block = min(math.lcm(*(p.denominator for p in parts)), 1000)
    ends = np.rint(np.cumsum([float(p) for p in parts]) / float(sum(parts)) * block).astype(int)
    return tuple(np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0)).tolist())


def _check_speed(part: object, holds: bool, field_name: str, rule: str, value: float) -> None:
    if not holds:
        name = type(part).__name__
        raise ValueError(f"{name}({field_name}={value}): {field_name} must be {rule}, got {value}. See help({name}).")

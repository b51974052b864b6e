"""What an update counts for that began some versions ago. Standard library only.

Notation: u, the staleness: versions between what an update began from and what it is added to; s(u), its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Constant", "Hinge", "Polynomial", "Staleness"]


class Staleness(Protocol):
    """s(u): 1 for a fresh update, and never more for an older one."""

    def __call__(self, staleness: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """s(u) = 1: staleness does not matter."""

    def __call__(self, staleness: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """s(u) = (u + 1)^-a.

    Args:
        a: how fast the weight falls, > 0. 0.5: one over the root, as in FedBuff.

    Source: Xie, Koyejo and Gupta, "Asynchronous federated optimization", 2019, arXiv:1903.03934, section 5.

    Example:
        >>> Polynomial(a=0.5)(3)
        0.5
    """

    a: float = 0.5

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise ValueError(
                f"Polynomial(a={self.a}): must be above 0, got {self.a}. The weight is (u + 1)^-a; APPFL computes "
                "(u + 1)^+a, which a negative a sets right there. Turn the sign, or use Constant() for no weight."
            )

    def __call__(self, staleness: float) -> float:
        weight: float = (staleness + 1.0) ** -self.a
        return weight


@dataclass(frozen=True)
class Hinge:
    """s(u) = 1 up to b, then 1 / (a (u - b) + 1).

    Args:
        a: how fast the weight falls beyond b, > 0.
        b: staleness that is forgiven, >= 0.

    Source: Xie, Koyejo and Gupta, "Asynchronous federated optimization", 2019, arXiv:1903.03934, section 5.

    Example:
        >>> Hinge(a=10.0, b=4.0)(4), Hinge(a=10.0, b=4.0)(5) == 1 / 11
        (1.0, True)
    """

    a: float = 10.0
    b: float = 4.0

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise ValueError(f"Hinge(a={self.a}): must be above 0, got {self.a}. 10 is usual; Constant() never falls.")
        if not self.b >= 0:
            raise ValueError(f"Hinge(b={self.b}): must be at least 0, got {self.b}. 4 is usual.")

    def __call__(self, staleness: float) -> float:
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)

"""In which rounds hostile clients are hostile."""

from __future__ import annotations

from dataclasses import dataclass

from partwise.core.attack import When
from partwise.core.rng import numpy_generator

__all__ = ["AfterRounds", "SomeRounds"]


@dataclass(frozen=True)
class AfterRounds(When):
    """From some version on: until then they earn trust, or the model settles.

    Args:
        rounds: versions without an attack, >= 0.
    """

    rounds: int

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"AfterRounds(rounds={self.rounds}): must be at least 0, got {self.rounds}. Raise it.")

    def is_active(self, version: int, seed: int) -> bool:
        return version >= self.rounds


@dataclass(frozen=True)
class SomeRounds(When):
    """In a share of the rounds, by chance.

    Args:
        share: in [0, 1].
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"SomeRounds(share={self.share}): must lie in [0, 1], got {self.share}. Lower it.")

    def is_active(self, version: int, seed: int) -> bool:
        return bool(numpy_generator(seed, "hostile rounds", version).random() < self.share)

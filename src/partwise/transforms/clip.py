"""Transforms that scale an update as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from partwise.core.limits import Limit
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, norm, scale, scaled_within

__all__ = ["Clip", "Scale"]


@dataclass(frozen=True)
class Clip:
    """value * min(1, max_norm / ‖value‖), over all held coordinates together.

    The norm of the result never exceeds `max_norm`, also after rounding. Parts that need a bounded update
    (a masked sum, noise) look for `bound`.

    Args:
        max_norm: largest Euclidean norm, > 0.

    Raises:
        ValueError: an update that is not finite.

    Example:
        >>> import torch
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (2,)}), {"w": torch.tensor([6.0, 8.0])})
        >>> Clip(5.0).apply(update, (), torch.Generator())[0].values()["w"]
        tensor([3., 4.])
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(
                f"Clip(max_norm={self.max_norm}): must be above 0, got {self.max_norm}. "
                "Take the median norm of a few unclipped updates."
            )

    @property
    def bound(self) -> float:
        """The largest absolute value of what comes out: no coordinate is larger than the norm."""
        return self.max_norm

    def limited(self, before: Limit) -> Limit:
        return before._replace(norm=min(before.norm, self.max_norm))

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        length = norm(update)
        if not math.isfinite(length):
            raise ValueError(
                f"{self!r}: needs a finite update, got norm {length}. Lower the learning rate or look at the data."
            )
        if length <= self.max_norm:
            return update, state
        return scaled_within(update, self.max_norm / length, self.max_norm), state


@dataclass(frozen=True)
class Scale:
    """factor * value; on the server, a learning rate without memory.

    It knows no names: running means and variances of a BatchNorm are multiplied like everything else, and with a factor
    above 1 a variance may become negative. `ServerSGD(lr, momentum=0)` leaves them as they were averaged.

    Args:
        factor: any finite number.
    """

    factor: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise ValueError(f"Scale(factor={self.factor}): must be finite, got {self.factor}. 1 changes nothing.")

    def limited(self, before: Limit) -> Limit:
        return before._replace(norm=before.norm * abs(self.factor) if self.factor else 0.0)

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        return scale(update, self.factor), state

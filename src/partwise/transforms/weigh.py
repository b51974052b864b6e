"""What an update counts for, bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partwise.core.limits import Limit
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update

__all__ = ["CapWeight"]


@dataclass(frozen=True)
class CapWeight:
    """weight <- min(weight, max_weight); with 1, all clients count alike that have an example.

    Behind a clip it bounds how far a client can move a sum, which noise for privacy needs: without it one client with
    most of the examples moves the mean almost alone.

    Args:
        max_weight: W, in the unit of the weights, > 0 and finite.

    Source: McMahan et al., arXiv:1710.06963, w_k = min(n_k / ŵ, 1).

    Example:
        >>> import torch
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (1,)}), {"w": torch.ones(1)}, weight=37.0)
        >>> CapWeight(10.0).apply(update, (), torch.Generator())[0].weight
        10.0
    """

    max_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.max_weight < math.inf:
            raise ValueError(
                f"CapWeight(max_weight={self.max_weight}): must be finite and above 0, got {self.max_weight}. "
                "1 counts all clients alike."
            )

    def limited(self, before: Limit) -> Limit:
        return before._replace(weight=min(before.weight, self.max_weight))

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        weight = update.weight
        if isinstance(weight, Mapping):
            return replace(update, weight={n: w.clamp(max=self.max_weight) for n, w in weight.items()}), state
        return replace(update, weight=min(float(weight), self.max_weight)), state

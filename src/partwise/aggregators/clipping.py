"""Centred clipping: a mean of differences to where the last aggregate was, each cut to a length.

Notation: m updates v_i over I_i; c is the centre, τ the radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import finite, mean_of, num_held, reduce_columns
from partwise.core.aggregate import Sum, sum_updates
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, norm, scale

__all__ = ["CentredClip"]


@dataclass(frozen=True)
class CentredClip:
    """c <- c + (1 / m) sum of (v_i - c) min(1, τ / ‖v_i - c‖), a few times, from the last aggregate.

    No client moves the aggregate by more than τ / m in an iteration, whatever it sends, and what was learned in
    earlier rounds stays the centre. Small submodels make it slow: on MNIST, without any hostile client, it was 10
    points behind the mean after 40 rounds where each client held a quarter of the units. Of submodels, a coordinate
    is moved by the mean over its holders, and the length of a difference is that over what is held, scaled by the
    root of the model's size over its own.

    Args:
        radius: τ, > 0, in the unit of a whole update's length. Where honest updates are hardly clipped, hostile ones
            are hardly either: with a third of the median length, two fifths of hostile clients were withstood on MNIST,
            with all of it not.
        iterations: >= 1.
        min_holders: how many must hold a coordinate for it to move, >= 1.

    Source: Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021,
        arXiv:2012.10333, §4.
    Differs: submodels; clients send changes of the model, not momentum.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 0.5, 900.0)]
        >>> part, params = CentredClip(radius=3.0), {"w": torch.zeros(1)}
        >>> part.reduce(updates, part.init(params, Census(3)), params)[0].value["w"]
        tensor([1.5000])
    """

    radius: float
    iterations: int = 1
    min_holders: int = 3
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(
                f"CentredClip(radius={self.radius}): must be finite and above 0, got {self.radius}. "
                "Start with a third of the median length of an update."
            )
        for name in ("iterations", "min_holders"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"CentredClip({name}={getattr(self, name)}): must be at least 1, got {getattr(self, name)}. "
                    "Raise it."
                )

    def init(self, params: Params, census: Census) -> Values:
        """The centre: nothing moves."""
        return {name: torch.zeros_like(t) for name, t in params.items()}

    def reduce(
        self, got: Sum | Sequence[Update], state: Values, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Values]:
        assert not isinstance(got, Sum)
        updates = finite(got, max(0, (len(got) - 1) // 2), self)
        centre = {name: t.clone() for name, t in state.items()}
        size = sum(t.numel() for t in params.values())
        for _ in range(self.iterations):
            total = sum_updates((self._clipped(u, centre, size) for u in updates), params)
            step = {name: t * _share(total.weight[name], t, self.min_holders) for name, t in total.value.items()}
            total.index.scatter_add_(centre, step)
        # What too few hold is left out, so that the record can tell how much that was.
        index = reduce_columns(updates, params, mean_of, least=self.min_holders).index
        moved = {name: v.clone() for name, v in index.gather(centre).items()}
        return Update(index, moved, float(len(updates))), centre

    def _clipped(self, update: Update, centre: Values, size: int) -> Update:
        at = update.index.gather(centre)
        apart = Update(update.index, {name: v - at[name] for name, v in update.values().items()})
        length = norm(apart) * math.sqrt(size / max(1, num_held(update)))
        return scale(apart, min(1.0, self.radius / length)) if length > 0 else apart


def _share(holders: Tensor, like: Tensor, least: int) -> Tensor:
    """One over the number of holders; 0 where they are too few."""
    return torch.where(holders >= least, 1 / holders.clamp(min=1), 0.0).to(like)

"""Rules that look for the point with the smallest sum of distances to all updates.

Shapes and notation: m updates v_i; z is the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import (
    at_least_one,
    combine,
    is_whole,
    mean_of,
    num_held,
    num_union,
    reduce_columns,
)
from partwise.aggregators.geometry import compared, distances, distances_to
from partwise.aggregators.krum import averaged, ranked
from partwise.core.aggregate import Sum
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["GeometricMedian", "Medoid"]

_FAR = 1e8  # typical distances: sums of squared distances keep eight digits of what is that much nearer


@dataclass(frozen=True)
class GeometricMedian:
    """argmin over z of the sum of ‖z - v_i‖, by Weiszfeld's iteration; z is a weighted mean of the updates.

    z <- sum of w_i v_i / sum of w_i with w_i = 1 / max(‖z - v_i‖, ν). Where all hold everything, distances are kept as
    a matrix of m by m numbers and updates are read twice, whatever the number of iterations; once more where some are
    1e8 times as far away as is usual, which are drawn in to that, for distance does not count. Between two equal
    halves, such as two updates, it lies midway. Of submodels, a coordinate of z is the mean over its holders, and the
    distance to an update is that over what it holds, scaled to the size of the union; then each iteration reads the
    updates. Stays where it is, however far the faulty go, while they are fewer than half. Not by coordinates: one bad
    value in each column, by another client each, breaks it.

    Args:
        max_iterations: >= 1.
        tolerance: it ends when no weight changes by more than this share of itself.
        smoothing: ν, as a share of the median distance from the update that is nearest to all others.
        min_holders: how many must hold a coordinate for it to move, >= 1.

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv:1802.10116, definition 4; Pillutla,
        Kakade, Harchaoui, "Robust aggregation for federated learning", 2019, arXiv:1912.13445, algorithm 2.
    Differs: submodels; weights are not used; where it ends does not depend on how far the farthest are.

    Example:
        >>> from partwise.core.index import Whole
        >>> rows = ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1e6, 1e6], [1e6, 1e6])
        >>> updates = [Update(Whole({"w": (2,)}), {"w": torch.tensor(row)}) for row in rows]
        >>> GeometricMedian().reduce(updates, (), {"w": torch.zeros(2)})[0].value["w"].round(decimals=3)
        tensor([0.7890, 0.7890])
    """

    max_iterations: int = 100
    tolerance: float = 1e-6
    smoothing: float = 1e-6
    min_holders: int = 3
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        at_least_one("GeometricMedian", self.min_holders)
        if self.max_iterations < 1:
            raise ValueError(
                f"GeometricMedian(max_iterations={self.max_iterations}): must be at least 1, got "
                f"{self.max_iterations}. 100 is usual."
            )
        for name in ("tolerance", "smoothing"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"GeometricMedian({name}={value}): must lie in (0, 1), got {value}. 1e-6 is usual.")

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        updates, squared = compared(got, params, max(0, (len(got) - 1) // 2), self, min_overlap=1)
        if not updates:
            return reduce_columns(updates, params, mean_of, least=1), state
        if is_whole(updates, params):
            updates, squared = _drawn_in(updates, params, squared)
            weights = self._weiszfeld(squared)
        else:
            weights = self._over_submodels(updates, params, squared)
        return combine(updates, params, weights, least=self.min_holders), state

    def _weiszfeld(self, squared: Tensor) -> Tensor:
        """Weights of the updates, summing to 1. squared: (m, m) distances between them."""
        near, weights = self._begin(squared)
        for _ in range(self.max_iterations if near else 0):
            # ‖Σ λ_k v_k - v_i‖² = Σ λ_k D_ik - ½ Σ λ_k λ_l D_kl, where Σ λ_k = 1
            to = squared @ weights
            apart = (to - 0.5 * (weights @ to)).clamp_(min=0.0).sqrt()
            before, weights = weights, _normal(apart.clamp(min=near).reciprocal())
            if self._is_settled(before, weights):
                break
        return weights

    def _is_settled(self, before: Tensor, weights: Tensor) -> bool:
        return bool(((weights - before).abs() <= self.tolerance * weights).all())

    def _begin(self, squared: Tensor) -> tuple[float, Tensor]:
        """ν, and weights to begin with: one step from the update that is nearest to all others.

        Where half of them or more are the same, ν is 0 and these are it; of two equal halves, what lies midway.
        """
        known, at, typical = _typical(squared)
        if not typical:
            same = (known == 0).sum(1)
            return 0.0, _normal((same == same.max()).double())
        closest = known[at]
        near = max(self.smoothing * typical, 1e-150)
        return near, _normal(closest.clamp(min=max(typical, near)).reciprocal().nan_to_num(0.0))

    def _over_submodels(self, updates: Sequence[Update], params: Params, squared: Tensor) -> Tensor:
        near, weights = self._begin(squared)
        union = num_union(updates, params)
        scales = torch.tensor([union / max(1, num_held(update)) for update in updates], dtype=torch.float64)
        for _ in range(self.max_iterations):
            centre = combine(updates, params, weights)
            apart = (distances_to(centre, updates, params) * scales).sqrt()
            before, weights = weights, _normal(apart.clamp(min=near or 1e-150).reciprocal())
            if self._is_settled(before, weights):
                break
        return weights


def _typical(squared: Tensor) -> tuple[Tensor, int, float]:
    """Distances, NaN where not known; which update is nearest to all others; and the median of its distances.

    That is one of an honest majority: the median of all pairs would grow with the others. It can be compared with no
    fewer than half of the updates can: who shares little with anybody would be near to all, and of those who can be
    compared with most, as who holds everything can, the faulty may be the only ones.
    """
    apart = squared.sqrt()
    known = torch.where(apart < torch.inf, apart, torch.nan)
    num = known.isfinite().sum(1)
    at = int(torch.where(num >= num.median(), known.nanmean(1), torch.inf).argmin())
    return known, at, float(known[at].nanmedian())


def _drawn_in(updates: list[Update], params: Params, squared: Tensor) -> tuple[list[Update], Tensor]:
    """Updates, and distances, of which none is too far for the digits of the others.

    The median depends on the direction in which an update lies, and not on how far: what is farther than that is put
    on its way from the update that is nearest to all others, so that directions turn by 1 / `_FAR` at most. Where the
    square of a distance runs over, its way is not known, and it is put there itself.
    """
    _, at, typical = _typical(squared)
    apart = squared[at].sqrt().tolist()
    far = [i for i, distance in enumerate(apart) if distance > _FAR * typical]
    if not far or not typical:
        return updates, squared
    centre, nearer = updates[at].values(), list(updates)
    for i in far:
        share = _FAR * typical / apart[i]
        value = {n: (c + share * (v.double() - c)).to(v) for n, v, c in _beside(updates[i], centre)}
        nearer[i] = replace(updates[i], value=value)
    return nearer, distances(nearer, params, 1)


def _beside(update: Update, centre: Values) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, value in update.values().items():
        yield name, value, centre[name].double()


@dataclass(frozen=True)
class Medoid:
    """The one update with the smallest sum of distances to all others.

    Submodels are compared as in `Krum`; those that share too little do not count for one another, and of two with the
    same number of others, the one with the smaller sum is taken. Whoever is 1e8 times as far away as is usual counts as
    if it were that far, so that sums keep the digits of the others. Nothing moves but what the one taken holds.

    Args:
        min_overlap: as in `Krum`.

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv:1802.10116, §3.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 2.0, 9.0)]
        >>> Medoid().reduce(updates, (), {"w": torch.zeros(1)})[0].value["w"]
        tensor([2.])
    """

    min_overlap: int = 10
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        if self.min_overlap < 1:
            raise ValueError(
                f"Medoid(min_overlap={self.min_overlap}): must be at least 1, got {self.min_overlap}. Raise it."
            )

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        updates, squared = compared(got, params, max(0, (len(got) - 1) // 2), self, min_overlap=self.min_overlap)
        num = (squared < torch.inf).sum(1)
        apart = _told_apart(updates, params, squared).sqrt()
        # Sorted, so that no order of rows shows in the sums.
        sums = torch.where(apart < torch.inf, apart, 0.0).sort(dim=1).values.sum(1)
        sums = torch.where(num == num.max(), sums, torch.inf) if len(updates) else sums
        chosen = [updates[i] for i in ranked(sums, updates)[:1]]
        return averaged(chosen, params), state


def _told_apart(updates: list[Update], params: Params, squared: Tensor) -> Tensor:
    """Distances of which none is too far for sums to keep the digits of the others."""
    typical = _typical(squared)[2] if updates else 0.0
    if not typical > 0:
        return squared
    if is_whole(updates, params):
        return _drawn_in(updates, params, squared)[1]
    return torch.where(squared < torch.inf, squared.clamp(max=_FAR * typical * (_FAR * typical)), squared)


def _normal(weights: Tensor) -> Tensor:
    return weights / weights.sum()

"""The Flag Aggregator: the mean, projected on the subspace that explains most updates best.

Shapes and notation: p updates g_i; Y is an orthonormal basis of r directions; K = (g_i · g_k) is (p, p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import at_least_one, combine, finite
from partwise.aggregators.geometry import inner_products
from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["FlagAggregator"]

_STOP = 1e-10  # fall of the objective below which it ends
_SHORT = 1e-30  # of the longest, cut: a shorter update's share in Y may be no float32


@dataclass(frozen=True)
class FlagAggregator:
    """(1 / p) Y Yᵀ sum of g_i, with Y minimising sum of sqrt(1 - ‖Yᵀ g_i‖² / ‖g_i‖²), by reweighted least squares.

    Y lies in the span of the updates, so everything but the last sum is done with p by p numbers. Lengths do not
    influence Y, but the mean; so updates longer than the median length are first cut to it, unless that is switched
    off. One of next to no length, 1e-30 of the longest that is left, has no say in Y, as one that is zero. Of
    submodels, K is taken over the overlaps, scaled to the union, and the sum per coordinate over its holders, scaled to
    all. On MNIST, without any hostile client, it lost 13 points of accuracy to the mean where each client held a
    quarter of the units, and 1 where each held half.

    Args:
        rank: r, >= 1; None for ⌈(p + 1) / 2⌉.
        pairs: λ, >= 0, the weight of the term for pairs of updates.
        iterations: >= 1.
        epsilon: added to 1 - ratio under the root.
        clip: whether to cut lengths to their median.
        min_holders: how many must hold a coordinate for it to move, >= 1.

    Source: Almasi, Mishra, Vamanan, Ravi, "Flag Aggregator: scalable distributed training under failures and augmented
        losses using convex optimization", ICLR 2024, arXiv:2302.05865, algorithm 1.
    Differs: submodels; clipping. The released code normalises before the projection, so that its step has no length.

    Example:
        >>> from partwise.core.index import Whole
        >>> rows = ([2.0, 0.0], [1.0, 1.0], [4.0, 1.0], [0.0, 10.0])
        >>> updates = [Update(Whole({"w": (2,)}), {"w": torch.tensor(row)}) for row in rows]
        >>> part = FlagAggregator(rank=1, iterations=50, clip=False)
        >>> part.reduce(updates, (), {"w": torch.zeros(2)})[0].value["w"].round(decimals=2)
        tensor([2.3500, 0.5900])
    """

    rank: int | None = None
    pairs: float = 0.0
    iterations: int = 5
    epsilon: float = 1e-7
    clip: bool = True
    min_holders: int = 3
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        at_least_one("FlagAggregator", self.min_holders)
        for name, least in (("rank", 1), ("pairs", 0), ("iterations", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"FlagAggregator({name}={value}): must be at least {least}, got {value}. Raise it.")
        if not 0 < self.epsilon < 1:
            raise ValueError(
                f"FlagAggregator(epsilon={self.epsilon}): must lie in (0, 1), got {self.epsilon}. 1e-7 is usual."
            )

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        updates = finite(got, max(0, (len(got) - 1) // 2), self)
        inner = inner_products(updates, params)[0]
        length = inner.diagonal().sqrt()
        alive = (length > 0) & (length < torch.inf)  # who sends squares that run over has no say, as who sends zeros
        cut = torch.ones_like(length)
        if self.clip and bool(alive.any()):
            cut = torch.where(alive, (length[alive].median() / length.clamp(min=1e-300)).clamp(max=1.0), cut)
        weights = torch.zeros_like(length)
        if bool(alive.any()):
            alive &= length > _SHORT * (length * cut)[alive].max()
            inner, cut = (inner * cut * cut.unsqueeze(1))[alive][:, alive], cut[alive]
            basis = self.subspace(inner)
            weights[alive] = cut * (basis @ (basis.t() @ inner.sum(1))) / len(updates)
        return combine(updates, params, weights, least=self.min_holders, is_share=True), state

    def subspace(self, inner: Tensor) -> Tensor:
        """B, (p, r) float64, with Y = G B. inner: K, of updates that are not zero."""
        rank = self.rank or math.ceil((len(inner) + 1) / 2)
        columns, share = _directions(inner, self.pairs)
        basis = _top(inner, columns * share.sqrt(), rank)
        best, lowest = basis, torch.inf
        for _ in range(self.iterations + 1):
            left = 1 - (basis.t() @ inner @ columns).square().sum(0).clamp_(max=1.0)
            objective = float((share * left.sqrt()).sum())
            is_done = lowest - objective < _STOP
            best, lowest = (basis, objective) if objective < lowest else (best, lowest)
            if is_done:
                break
            basis = _top(inner, columns * share.sqrt() * (left + self.epsilon) ** -0.25, rank)
        return best


def _directions(inner: Tensor, pairs: float) -> tuple[Tensor, Tensor]:
    """Every update, and where they count every difference of two, at length 1, as sums of updates; and their weights.

    (p, n) and (n,).
    """
    many, square = len(inner), inner.diagonal()
    single = torch.eye(many, dtype=torch.float64) / square.sqrt()
    share = torch.ones(many, dtype=torch.float64)
    if not pairs:
        return single, share
    one, other = torch.triu_indices(many, many, 1)
    apart = square[one] + square[other] - 2 * inner[one, other]
    differ = apart > 1e-12 * (square[one] + square[other])
    one, other, apart = one[differ], other[differ], apart[differ]
    unit = torch.eye(many, dtype=torch.float64)
    double = (unit[:, one] - unit[:, other]) / apart.sqrt()
    weight = 2 * pairs / (many * (many - 1))  # each pair stands twice in the sum
    return torch.cat([single, double], 1), torch.cat([share, torch.full_like(apart, weight)])


def _top(inner: Tensor, columns: Tensor, rank: int) -> Tensor:
    """B of the leading left singular vectors of G C. columns: C, (p, n)."""
    values, vectors = torch.linalg.eigh(columns.t() @ inner @ columns)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    keep = values > 1e-12 * values[0].clamp(min=1e-300)
    found: Tensor = columns @ vectors[:, keep] / values[keep].sqrt()
    return found

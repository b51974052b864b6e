"""Robust rules that work on every coordinate by itself.

Shapes and notation: m updates, n of them hold a coordinate, q are faulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partwise.aggregators.columns import Columns, at_least_one, finite, reduce_columns, window_mean
from partwise.core.aggregate import Sum
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["Median", "TrimmedMean", "cuts_of", "median_of", "trimmed_of"]


@dataclass(frozen=True)
class Median:
    """The median of each coordinate over those that hold it; of an even number, the mean of the middle two.

    Stays between the honest values while q < n / 2. Weights are not used: they are the clients' own claims.
    With few holders a coordinate is held: it does not move, since one or two values cannot be checked. On MNIST split
    by Dirichlet(0.5), without any hostile client, it lost 2 points of accuracy to the mean.

    Args:
        min_holders: m_min, the least number of values for a coordinate to move, >= 1.

    Source: Yin et al., "Byzantine-robust distributed learning", ICML 2018, arXiv:1803.01498, definition 1.
    Differs: absence is not a zero vote.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 2.0, 6.0, 1e9)]
        >>> params = {"w": torch.zeros(1)}
        >>> Median().reduce(updates, (), params)[0].value["w"]
        tensor([4.])
    """

    min_holders: int = 3
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        at_least_one("Median", self.min_holders)

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        updates = finite(got, max(0, (len(got) - 1) // 2), self)
        return reduce_columns(updates, params, _median, least=self.min_holders), state


def median_of(ordered: Tensor, present: Tensor) -> Tensor:
    """The middle of each column, float64. ordered: (c, m) ascending. present: (c,) of them count, >= 1."""
    low = ordered.gather(1, ((present - 1) // 2).unsqueeze(1))
    high = ordered.gather(1, (present // 2).unsqueeze(1))
    return (low.double() + high.double()).squeeze(1) / 2


def _median(block: Columns) -> Tensor:
    return median_of(block.ordered(), block.present)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its b smallest and b largest values, over those that hold it.

    Where n of m hold a coordinate, b_n = max(1, ⌊b n / m⌋) are cut on each side, and the coordinate is held (it does
    not move) unless n >= 2 b_n + 1. Weights are not used: they are the clients' own claims.

    Args:
        trim_fraction: b / m, in [0, 0.5); 0 is the mean. Without either, 0.2.
        trim_count: b, >= 0, instead of the fraction; then at least 2b + 1 updates are needed. It is b of all m, so that
            clients who hold other coordinates lower the cut of these: where anybody may join, give the fraction.
        min_holders: m_min, the least number of values for a coordinate to move; never below 3, the default, where
            anything is trimmed.

    Source: Yin et al., "Byzantine-robust distributed learning", ICML 2018, arXiv:1803.01498, definition 2.
    Differs: absence is not a zero vote; the cut per coordinate follows its number of holders.

    Example:
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (1.0, 2.0, 6.0, 1e9)]
        >>> params = {"w": torch.zeros(1)}
        >>> TrimmedMean(trim_count=1).reduce(updates, (), params)[0].value["w"]
        tensor([4.])
    """

    trim_fraction: float | None = None
    trim_count: int | None = None
    min_holders: int | None = None
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        if self.trim_fraction is not None and self.trim_count is not None:
            raise ValueError(
                f"TrimmedMean(trim_fraction={self.trim_fraction}, trim_count={self.trim_count}): needs one of the two, "
                "got both. Give the count if the number of faulty clients is known."
            )
        if self.trim_fraction is not None and not 0 <= self.trim_fraction < 0.5:
            raise ValueError(
                f"TrimmedMean(trim_fraction={self.trim_fraction}): must lie in [0, 0.5), got {self.trim_fraction}. "
                "0.2 is usual."
            )
        if self.trim_count is not None and self.trim_count < 0:
            raise ValueError(
                f"TrimmedMean(trim_count={self.trim_count}): must be at least 0, got {self.trim_count}. 0 is the mean."
            )
        if self.min_holders is not None:
            at_least_one("TrimmedMean", self.min_holders)

    def init(self, params: Params, census: Census) -> Any:
        return ()

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert not isinstance(got, Sum)
        count = self.trim_count
        if count is not None and len(got) < 2 * count + 1:
            raise ValueError(
                f"TrimmedMean(trim_count={count}): needs at least 2b+1 = {2 * count + 1} updates, got {len(got)}. "
                "Lower trim_count or ask a larger cohort."
            )
        cuts = torch.tensor(self._cuts(len(got)))
        updates = finite(got, int(cuts[-1]), self)
        num_dropped = len(got) - len(updates)
        if num_dropped:  # they were some of the faulty: b less those, of m less those, may be left
            cuts = torch.tensor(cuts_of(int(cuts[-1]) - num_dropped, len(updates))).clamp_(min=1)
        least = max(self.min_holders or 1, 3 if int(cuts[-1]) else 1)

        def rule(block: Columns) -> Tensor:
            return trimmed_of(block.ordered(), block.present, cuts)

        return reduce_columns(updates, params, rule, least=least), state

    def _cuts(self, total: int) -> list[int]:
        if self.trim_count is not None:
            return cuts_of(self.trim_count, total)
        fraction = 0.2 if self.trim_fraction is None else self.trim_fraction
        if not fraction:
            return [0] * (total + 1)
        return [max(1, min(int(fraction * n + 1e-9), (n - 1) // 2)) for n in range(total + 1)]


def cuts_of(count: int, total: int) -> list[int]:
    """b_n = max(1, ⌊b n / m⌋) for n = 0..m, of a declared b of m; 0 for b = 0. Whole numbers, so that none is lost."""
    return [max(1, count * present // total) if count else 0 for present in range(total + 1)]


def trimmed_of(ordered: Tensor, present: Tensor, cuts: Tensor) -> Tensor:
    """The mean of each column without its smallest and largest, float64.

    Args:
        ordered: (c, m) ascending.
        present: (c,) of them count, n each.
        cuts: (m + 1,) how many to leave out on each side where n count.
    """
    if bool((present == ordered.shape[1]).all()):
        alike = int(cuts[ordered.shape[1]])
        return window_mean(ordered, alike, ordered.shape[1] - alike)
    cut = cuts.to(present.device)[present]
    return window_mean(ordered, cut, present - cut)

"""A running sum of some rows of one table, in memory and time of the rows that are touched, whatever the table's size.

Shapes: an update brings r rows of width (...); u different rows are touched in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.core.codec import register

__all__ = ["RowSum", "Touched"]

_WAITING_ROWS = 1 << 16  # at most, before they are folded into one sum, if no more are touched


@register
class Touched(NamedTuple):
    """What was summed.

    Args:
        rows: (u,) int64, ascending.
        value: (u, ...), sum of weight * value.
        weight: (u,) float64, sum of weights.
    """

    rows: Tensor
    value: Tensor
    weight: Tensor


@register
@dataclass(eq=False)
class RowSum:
    """Adds rows in the order in which they come, in memory of at most twice the rows that are touched or wait.

    Args:
        table_rows: rows of the table; no more than that wait.
        parts: what was added, to be folded into one.
        waiting: rows in the parts behind the first.
        folded: rows in the first part.
    """

    table_rows: int
    parts: list[Touched] = field(default_factory=list)
    waiting: int = 0
    folded: int = 0

    def add_(self, rows: Tensor, value: Tensor, weight: Tensor) -> None:
        """Add weighted rows.

        Args:
            rows: (r,) int64, each at most once.
            value: (r, ...), already weighted; kept until the sum is taken.
            weight: (r,) float64.
        """
        self.parts.append(Touched(rows, value, weight))
        self.waiting += len(rows)
        if self.waiting > max(min(self.table_rows, _WAITING_ROWS), self.folded):
            self._fold()

    def _fold(self) -> None:
        rows, at = torch.unique(torch.cat([part.rows for part in self.parts]), return_inverse=True)
        first = self.parts[0]
        value = torch.zeros((len(rows), *first.value.shape[1:]), dtype=first.value.dtype, device=first.value.device)
        value.index_add_(0, at, torch.cat([part.value for part in self.parts]))
        weight = torch.zeros(len(rows), dtype=torch.float64, device=first.weight.device)
        weight.index_add_(0, at, torch.cat([part.weight for part in self.parts]))
        self.parts = [Touched(rows, value, weight)]
        self.waiting, self.folded = 0, len(rows)

    def total(self) -> Touched:
        """The sum so far, without rows that only updates of weight 0 touched."""
        self._fold()
        (found,) = self.parts
        kept = found.weight > 0
        return found if bool(kept.all()) else Touched(*(column[kept] for column in found))

"""A running sum of some rows of one table, in memory and time of the rows that are touched, whatever the table's size.

Shapes: an update brings r rows of width (...); u different rows are touched in all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RowSum", "Touched"]

_WAITING_ROWS = 1 << 16  # at most, before they are folded into one sum, if no more are touched


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


class RowSum:
    """Adds rows in the order in which they come, in memory of at most twice the rows that are touched or wait.

    Args:
        table_rows: rows of the table; no more than that wait.
    """

    def __init__(self, table_rows: int) -> None:
        self._parts: list[Touched] = []
        self._patience = min(table_rows, _WAITING_ROWS)
        self._waiting, self._folded = 0, 0

    def add_(self, rows: Tensor, value: Tensor, weight: Tensor) -> None:
        """Add weighted rows.

        Args:
            rows: (r,) int64, each at most once.
            value: (r, ...), already weighted; kept until the sum is taken.
            weight: (r,) float64.
        """
        self._parts.append(Touched(rows, value, weight))
        self._waiting += len(rows)
        if self._waiting > max(self._patience, self._folded):
            self._fold()

    def _fold(self) -> None:
        rows, at = torch.unique(torch.cat([part.rows for part in self._parts]), return_inverse=True)
        first = self._parts[0]
        value = torch.zeros((len(rows), *first.value.shape[1:]), dtype=first.value.dtype, device=first.value.device)
        value.index_add_(0, at, torch.cat([part.value for part in self._parts]))
        weight = torch.zeros(len(rows), dtype=torch.float64, device=first.weight.device)
        weight.index_add_(0, at, torch.cat([part.weight for part in self._parts]))
        self._parts = [Touched(rows, value, weight)]
        self._waiting, self._folded = 0, len(rows)

    def total(self) -> Touched:
        """The sum so far, without rows that only updates of weight 0 touched."""
        self._fold()
        (found,) = self._parts
        kept = found.weight > 0
        return found if bool(kept.all()) else Touched(*(column[kept] for column in found))

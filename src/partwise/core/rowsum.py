"""A running sum of some rows of one table, in memory and time of the rows that are touched, whatever the table's size.

Shapes: an update brings r rows of width (...); u different rows are touched in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.codec import register
from partwise.core.scratch import Scratch

__all__ = ["RowSum", "Touched"]

_WAITING_BYTES = 64 << 20  # of values at most, before they are folded into one sum, if no more are touched


@register
class Touched(NamedTuple):
    """What was summed.

    Args:
        rows: (u,) int64, ascending.
        value: (u, ...), sum of weight * value.
        weight: (u,) float64, sum of weights; one number where all rows have it.
    """

    rows: Tensor
    value: Tensor
    weight: Tensor | float


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

    def add_(self, rows: Tensor, value: Tensor, weight: Tensor | float) -> None:
        """Add weighted rows.

        Args:
            rows: (r,) int64, in any order; a row may come twice.
            value: (r, ...), already weighted; kept until the sum is taken.
            weight: (r,) float64, or one number for all of them.
        """
        self.parts.append(Touched(rows, value, weight))
        many = rows.shape[0]
        self.waiting += many
        if self.waiting > self.folded and (
            self.waiting > self.table_rows or self.waiting * value.nbytes > _WAITING_BYTES * many
        ):
            self._fold()

    def _fold(self) -> None:
        values = _joined([part.value for part in self.parts])
        rows, order = torch.sort(torch.cat([part.rows for part in self.parts]), stable=True)
        is_first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        is_first[1:] = rows[1:] != rows[:-1]
        begins = is_first.nonzero().reshape(-1)
        weight = self._weights(order, is_first, begins)
        self.parts = [Touched(rows[begins], _segments(values, order, begins), weight)]
        self.waiting, self.folded = 0, len(begins)

    def _weights(self, order: Tensor, is_first: Tensor, begins: Tensor) -> Tensor:
        """The sum of weights of every row."""
        each = [part.weight for part in self.parts]
        if not any(isinstance(w, Tensor) for w in each) and len(set(each)) == 1:  # mostly: they need only be counted
            return _lengths(begins, len(order)).double() * float(each[0])
        columns = [torch.as_tensor(p.weight, dtype=torch.float64).expand(len(p.rows)) for p in self.parts]
        weights = torch.cat([column.to(order.device) for column in columns])
        found = torch.zeros(len(begins), dtype=torch.float64, device=order.device)
        return found.index_add_(0, is_first.cumsum(0) - 1, weights[order])

    def total(self) -> Touched:
        """The sum so far, without rows that only updates of weight 0 touched."""
        self._fold()
        ((rows, value, weight),) = self.parts
        assert isinstance(weight, Tensor)
        kept = weight > 0
        return Touched(rows, value, weight) if bool(kept.all()) else Touched(rows[kept], value[kept], weight[kept])


def _joined(values: Sequence[Tensor]) -> Tensor:
    """(r, ...) of every part, one after another."""
    like = values[0].new_empty(()).expand(sum(t.shape[0] for t in values), *values[0].shape[1:])
    # In large pages: to be given so much memory by small ones takes longer than to fill it.
    return torch.cat(list(values), out=Scratch().empty({"": like})[""])


def _lengths(begins: Tensor, end: int) -> Tensor:
    return torch.cat([begins[1:], begins.new_tensor([end])]) - begins if len(begins) else begins


def _segments(values: Tensor, order: Tensor, begins: Tensor) -> Tensor:
    """Sums over segments of `values[order]`, each in that order; nothing is put in order first."""
    if values.dtype not in (torch.float32, torch.float64) or values.dim() < 2 or not values.numel():
        at = torch.repeat_interleave(_lengths(begins, len(order)))
        found = torch.zeros((len(begins), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return found.index_add_(0, at, values[order])
    flat = F.embedding_bag(order, values.reshape(len(values), -1), begins, mode="sum")
    return flat.reshape(len(begins), *values.shape[1:])

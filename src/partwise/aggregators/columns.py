"""Updates of different submodels side by side, one column per coordinate; absence is never read as zero.

Shapes: m updates, V coordinates in one parameter, c of them in a block, n present in a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.core.aggregate import Coverage, union_index
from partwise.core.model import Params, Values
from partwise.core.update import Update, is_finite

__all__ = ["Columns", "Rule", "columns", "finite", "num_held", "reduce_columns"]

_ELEMENTS = 1 << 21  # of one block, m × c: what is in memory at a time
Rule = Callable[["Columns"], Tensor]


class Columns(NamedTuple):
    """One block of columns.

    Args:
        start: flat position of its first column.
        table: (m, c), infinity where absent, so that sorting puts what is present first.
        present: (c,) int64, n of each column.
    """

    start: int
    table: Tensor
    present: Tensor

    def picked(self, chosen: Tensor) -> Columns:
        """Some of the columns; (c,) bool."""
        return self if bool(chosen.all()) else Columns(self.start, self.table[:, chosen], self.present[chosen])


@dataclass(frozen=True, eq=False)
class _Held:
    """One update's values of one parameter. at: ascending flat positions; None for all."""

    at: Tensor | None
    flat: Tensor

    def fill_(self, row: Tensor, start: int) -> None:
        stop = start + len(row)
        if self.at is None:
            row.copy_(self.flat[start:stop])
            return
        first, last = (int(i) for i in torch.searchsorted(self.at, torch.tensor([start, stop], device=self.at.device)))
        row[self.at[first:last] - start] = self.flat[first:last].to(row)


def _held(update: Update, value: Tensor, name: str) -> _Held:
    flat = value.reshape(-1)
    if update.index.grain(name) == 0:
        return _Held(None, flat)
    at, order = update.index.coords(name).sort()
    return _Held(at, flat[order])


def columns(updates: Sequence[Update], params: Params, name: str, dtype: torch.dtype) -> Iterator[Columns]:
    """The blocks of one parameter, in order; memory is m × c whatever the parameter's size."""
    like = params[name]
    holders = {i: _held(u, u.values()[name], name) for i, u in enumerate(updates) if name in u.value}
    size, width = like.numel(), max(1, _ELEMENTS // max(1, len(updates)))
    for start in range(0, size, width):
        stop = min(size, start + width)
        table = torch.full((len(updates), stop - start), torch.inf, dtype=dtype, device=like.device)
        for i, held in holders.items():
            held.fill_(table[i], start)
        yield Columns(start, table, (table < torch.inf).sum(0))


def finite(updates: Sequence[Update], allowed: int, part: object) -> list[Update]:
    """The updates without those that hold NaN or infinity, which count among the faulty.

    Raises:
        ValueError: more of them than the rule is built for.
    """
    kept = [update.unpacked() for update in updates if is_finite(update)]
    if len(updates) - len(kept) > allowed:
        raise ValueError(
            f"{part!r}: allows {allowed} faulty among {len(updates)} updates, got {len(updates) - len(kept)} that are "
            "not finite. Look at those clients' data, or lower the local learning rate."
        )
    return kept


def reduce_columns(updates: Sequence[Update], params: Params, rule: Rule, *, least: int) -> Update:
    """`rule` in every column with at least `least` values; all other coordinates are held: left out of the result.

    Args:
        updates: finite and without packed tensors.
        params: shapes, types and devices of the result.
        rule: a block of columns to one value per column.
        least: m_min, >= 1.
    """
    cover = Coverage(params)
    for update in updates:
        cover.add_(update.index, 1.0)
    value: Values = {}
    whole: dict[str, Tensor | None] = {}
    single: dict[str, Tensor] = {}
    for name, like in params.items():
        moved = cover.weights[name] >= least if name in cover.weights else torch.zeros(())
        if not bool(moved.any()):
            continue
        mask = moved.expand(like.shape).reshape(-1)
        parts = []
        for block in columns(updates, params, name, like.dtype):
            chosen = mask[block.start : block.start + block.table.shape[1]]
            if bool(chosen.any()):
                parts.append(rule(block.picked(chosen)).to(like.dtype))
        flat = torch.cat(parts)
        if bool(moved.all()):
            whole[name], value[name] = None, flat.reshape(like.shape)
        elif moved.numel() == moved.shape[0] == like.shape[0]:
            whole[name] = moved.reshape(-1).nonzero().reshape(-1)
            value[name] = flat.reshape(-1, *like.shape[1:])
        else:
            single[name], value[name] = mask.nonzero().reshape(-1), flat
    return Update(union_index(whole, single, params), value, float(len(updates)))


def num_held(update: Update) -> int:
    """How many coordinates an update holds."""
    return sum(prod(update.index.held_shape(name)) for name in update.index.shapes)

"""Sums of some rows of one table, written out by hand: what `aggregation.py` compares Partwise with.

Each gives the rows, or None for all of the table's, and their sums, and counts each row's holders, as a mean needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Held = Sequence[tuple[Tensor, Tensor]]  # of each client: rows (r,) int64, ascending; values (r, width)
Found = tuple[Tensor | None, Tensor]


def joined(held: Held) -> tuple[Tensor, Tensor]:
    return torch.cat([rows for rows, _ in held]), torch.cat([value for _, value in held])


def index_put(held: Held, table: int) -> Found:
    at, value = joined(held)
    torch.bincount(at, minlength=table)
    return None, torch.zeros(table, value.shape[1]).index_put_((at,), value, accumulate=True)


def index_add(held: Held, table: int) -> Found:
    at, value = joined(held)
    torch.bincount(at, minlength=table)
    return None, torch.zeros(table, value.shape[1]).index_add_(0, at, value)


def one_by_one(held: Held, table: int) -> Found:
    total, count = torch.zeros(table, held[0][1].shape[1]), torch.zeros(table)
    one = torch.ones(())
    for rows, value in held:
        total.index_add_(0, rows, value)
        count.index_add_(0, rows, one.expand(len(rows)))
    return None, total


def unique(held: Held, table: int) -> Found:
    at, value = joined(held)
    rows, where, _ = torch.unique(at, return_inverse=True, return_counts=True)
    return rows, torch.zeros(len(rows), value.shape[1]).index_add_(0, where, value)


def segments(held: Held, table: int) -> Found:
    at, value = joined(held)
    at, order = at.sort(stable=True)
    rows, counts = torch.unique_consecutive(at, return_counts=True)
    value = value.index_select(0, order)
    return rows, torch.segment_reduce(value, "sum", lengths=counts, axis=0, unsafe=True)


def add_mean_(held: Held, table: Tensor) -> Tensor:
    """Add the mean over each row's holders to the table itself."""
    at, value = joined(held)
    counts = torch.bincount(at, minlength=len(table))
    return table.index_add_(0, at, value.div_(counts[at].unsqueeze(1)))

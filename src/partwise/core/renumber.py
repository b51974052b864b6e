"""Ids of a table's rows: which ones there are, and where each lies among those that are held.

A table that is not much longer than the list of ids is marked row by row, which takes a tenth of the time of sorting;
any other is left alone, so that time and memory are those of the ids, whatever the table's length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["different", "positions"]

_ROWS_PER_ID = 4


def different(ids: Tensor, size: int) -> Tensor:
    """The different ids, ascending, (r,) int64.

    Args:
        ids: (n,) int64.
        size: rows of the table; ids that are beyond it are given too.

    Example:
        >>> different(torch.tensor([4, 1, 4]), 9)
        tensor([1, 4])
    """
    found: Tensor
    if not _is_short(size, ids) or not _lie_within(ids, size):
        found = torch.unique(ids)
        return found
    marks = np.zeros(size, np.bool_)
    marks[ids.numpy()] = True
    found = torch.from_numpy(np.flatnonzero(marks).astype(np.int64, copy=False))
    return found


def positions(rows: Tensor, ids: Tensor) -> Tensor | None:
    """Where each id lies among the rows, of the ids' shape, int64; None if some are not there.

    Args:
        rows: (r,) int64, ascending.
        ids: (...) int64.

    Example:
        >>> positions(torch.tensor([1, 4]), torch.tensor([4, 1, 4]))
        tensor([1, 0, 1])
    """
    if not ids.numel():
        return torch.zeros_like(ids)
    if not len(rows):
        return None
    size = int(rows[-1]) + 1
    if not _is_short(size, ids) or int(rows[0]) < 0:
        at = torch.searchsorted(rows, ids.contiguous()).clamp_(max=len(rows) - 1)
        return at if torch.equal(rows[at], ids) else None
    if not _lie_within(ids, size):
        return None
    places = np.full(size, -1, np.int64)
    places[rows.numpy()] = np.arange(len(rows))
    found = torch.from_numpy(places[ids.numpy()])
    return found if bool((found >= 0).all()) else None


def _is_short(size: int, ids: Tensor) -> bool:
    return ids.is_cpu and size <= _ROWS_PER_ID * ids.numel()


def _lie_within(ids: Tensor, size: int) -> bool:
    low, high = torch.aminmax(ids)
    return bool(low >= 0) and bool(high < size)

"""How far apart updates are, and how they lie to one another, where they overlap.

Shapes and notation: m updates; update i holds I_i, |I_i| coordinates; c columns in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.aggregators.columns import Columns, finite, is_whole, num_held, num_union, of_stretches
from partwise.core.model import Params
from partwise.core.update import Update, has_finite_weight

__all__ = ["compared", "distances", "distances_to", "inner_products"]

_NEAR = 1e-2  # of |v_i|² + |v_k|²: nearer pairs would lose more than four digits in the difference of products
_SMALL = 1e-30  # a square, of whose terms some that matter may be too small for float32, which ends at 1e-38
_ROWS = 16  # of a table at a time: whole tiles of a product, and little of it computed twice


class _Products(NamedTuple):
    """Sums over the overlap of two updates, (m, m) float64.

    Args:
        cross: of v_i v_k.
        own: of v_i².
        shared: the number of coordinates.
    """

    cross: Tensor
    own: Tensor
    shared: Tensor


def compared(
    got: Sequence[Update], params: Params, allowed: int, part: object, *, min_overlap: int
) -> tuple[list[Update], Tensor]:
    """What `finite` keeps, and `distances` between them.

    Products of whole updates are finite where the updates are, so that nothing is read for that alone.
    """
    if is_whole(got, params) and all(map(has_finite_weight, got)):
        updates = [update.unpacked() for update in got]
        products = _products(updates, params)
        if bool(torch.isfinite(products.own).all()):
            return updates, _squared(updates, params, products, min_overlap)
    updates = finite(got, allowed, part)
    return updates, distances(updates, params, min_overlap)


def distances(updates: Sequence[Update], params: Params, min_overlap: int = 10) -> Tensor:
    """Squared distances over the overlaps, scaled to the size of the union of all.

    (m, m) float64; infinite where a pair shares too little. By products of blocks with their transposes; pairs that
    nearly coincide, whose digits a difference of products would lose, are subtracted directly, in float64.

    Args:
        updates: finite and without packed tensors.
        params: shapes and devices.
        min_overlap: coordinates that a pair must share, and at least 5 % of the smaller; never more than the union.
    """
    return _squared(updates, params, _products(updates, params), min_overlap)


def _squared(updates: Sequence[Update], params: Params, products: _Products, min_overlap: int) -> Tensor:
    cross, own, shared = products
    size = own + own.t()
    # Where squares run over, a difference of two that are infinite is no number: such a pair is far apart.
    squared = (size - 2 * cross).nan_to_num_(torch.inf, torch.inf).clamp_(min=0.0)
    near = (squared < _NEAR * size).fill_diagonal_(False).triu_()
    if bool(near.any()):
        exact = _differences(updates, params, near)
        squared = torch.where(near | near.t(), exact + exact.t(), squared)
    factor, is_apart = _overlap(updates, params, shared, min_overlap)
    return torch.where(is_apart, torch.inf, squared * factor).fill_diagonal_(0.0)


def distances_to(centre: Update, updates: Sequence[Update], params: Params) -> Tensor:
    """Squared distances of updates to a centre that holds what they hold, over that: (m,) float64, not scaled."""
    total = torch.zeros(len(updates), dtype=torch.float64)

    def of(blocks: Iterable[Columns]) -> Tensor:
        found = torch.zeros_like(total)
        for block in blocks:
            held = block.table < torch.inf
            difference = torch.where(held[:-1] & held[-1], block.table[:-1] - block.table[-1], 0.0)
            found += difference.square_().sum(1).to(found.device)
        return found

    for name in params:
        for stretch in of_stretches([*updates, centre], params, name, torch.float64, of):
            total += stretch
    return total


def inner_products(updates: Sequence[Update], params: Params, *, min_overlap: int = 1) -> tuple[Tensor, Tensor]:
    """Inner products over the overlaps, scaled to the size of the union of all; and cosines there, in -1..1.

    Two (m, m) float64; 0 where a pair shares too little. An update that is zero has cosine 0 to every other.

    Args:
        updates: finite and without packed tensors.
        params: shapes and devices.
        min_overlap: as in `distances`.
    """
    cross, own, shared = _products(updates, params)
    factor, is_apart = _overlap(updates, params, shared, min_overlap)
    length = own.sqrt()
    both = length * length.t()
    cosine = torch.where((both > 0) & ~is_apart, cross / both.clamp(min=1e-300), 0.0).clamp_(-1.0, 1.0)
    return torch.where(is_apart, 0.0, cross * factor), cosine


def _products(updates: Sequence[Update], params: Params) -> _Products:
    num = len(updates)
    found = _nothing(num)
    for name, like in params.items():
        for stretch in of_stretches(updates, params, name, like.dtype, partial(_of_stretch, num)):
            _add_(found, stretch)
    # Ties are told by equality, so that a pair has one product, whichever of the two comes first.
    return found._replace(cross=found.cross.tril() + found.cross.tril(-1).t())


def _nothing(num: int) -> _Products:
    return _Products(*(torch.zeros(num, num, dtype=torch.float64) for _ in range(3)))


def _add_(found: _Products, more: _Products) -> None:
    for total, part in zip(found, more, strict=True):
        total.add_(part.to(total))


def _of_stretch(num: int, blocks: Iterable[Columns]) -> _Products:
    found = _nothing(num)
    for block in blocks:
        if block.is_full:
            cross = _safe(_lower, block.table).to(found.cross.device)
            found.cross.add_(cross)
            found.own.add_(cross.diagonal().unsqueeze(1))
            found.shared.add_(block.table.shape[1])
            continue
        held = block.table < torch.inf
        table, mask = block.table.masked_fill(~held, 0.0), held.to(block.table)
        _add_(found, _Products(_safe(_lower, table), _safe(partial(_squares, mask), table), mask @ mask.t()))
    return found


def _lower(table: Tensor) -> Tensor:
    """(m, m) inner products of rows; of what is above the diagonal, most is left out and 0."""
    num = len(table)
    found = table.new_zeros(num, num)
    for first, last in pairwise((0, *range(_ROWS, num - _ROWS + 1, _ROWS), num)):
        torch.mm(table[first:last], table[:last].t(), out=found[first:last, :last])
    return found


def _squares(mask: Tensor, table: Tensor) -> Tensor:
    return table.square() @ mask.to(table).t()


def _safe(products: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """Products in the table's own type, or in float64 where they run over, or under."""
    found = products(table)
    small = found.diagonal() < _SMALL
    is_safe = bool(torch.isfinite(found).all()) and not (bool(small.any()) and bool(table[small].any()))
    return found if is_safe else products(table.double())


def _differences(updates: Sequence[Update], params: Params, pairs: Tensor) -> Tensor:
    """Squared differences over the overlap of the marked pairs (i, k); 0 for all others."""
    total = torch.zeros_like(pairs, dtype=torch.float64)
    rows = [(i, at) for i in range(len(pairs)) if len(at := pairs[i].nonzero().reshape(-1))]

    def of(blocks: Iterable[Columns]) -> Tensor:
        found = torch.zeros_like(total)
        for block in blocks:
            held = block.table < torch.inf
            table = block.table if block.is_full else block.table.masked_fill(~held, 0.0)
            for i, at in rows:
                difference = table[at] - table[i]
                if not block.is_full:
                    difference.mul_(held[at]).mul_(held[i])
                found[i, at] += difference.square_().sum(1).to(found.device)
        return found

    for name in params:
        for stretch in of_stretches(updates, params, name, torch.float64, of):
            total += stretch
    return total


def _overlap(updates: Sequence[Update], params: Params, shared: Tensor, min_overlap: int) -> tuple[Tensor, Tensor]:
    """Union over overlap, of each pair, and whether it shares too little to be compared."""
    union = num_union(updates, params)
    sizes = torch.tensor([num_held(update) for update in updates])
    smaller = torch.minimum(sizes.unsqueeze(0), sizes.unsqueeze(1))
    needed = (0.05 * smaller).ceil().clamp(min=min_overlap, max=max(1, union))
    # A factor of exactly 1 where both hold everything: then these are the plain distances, bit for bit.
    return union / shared.clamp(min=1), shared < needed

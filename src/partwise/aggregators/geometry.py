"""How far apart updates are, and how they lie to one another, where they overlap.

Shapes and notation: m updates; update i holds I_i, |I_i| coordinates; c columns in a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from partwise.aggregators.columns import Columns, columns, num_held, num_union
from partwise.core.model import Params
from partwise.core.update import Update

__all__ = ["distances", "distances_to", "inner_products", "is_whole"]

_NEAR = 1e-2  # of |v_i|² + |v_k|²: nearer pairs would lose more than four digits in the difference of products
_LARGE = 1e15  # squares of larger float32 values, summed, may run over


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


def is_whole(updates: Sequence[Update], params: Params) -> bool:
    """Whether every update holds every coordinate."""
    return all(
        update.index.shapes.keys() == params.keys() and not any(map(update.index.grain, params)) for update in updates
    )


def distances(updates: Sequence[Update], params: Params, min_overlap: int = 10) -> Tensor:
    """Squared distances over the overlaps, scaled to the size of the union of all.

    (m, m) float64; infinite where a pair shares too little. By products of blocks with their transposes; pairs that
    nearly coincide, whose digits a difference of products would lose, are subtracted directly, in float64.

    Args:
        updates: finite and without packed tensors.
        params: shapes and devices.
        min_overlap: coordinates that a pair must share, and at least 5 % of the smaller; never more than the union.
    """
    cross, own, shared = _products(updates, params, params)
    size = own + own.t()
    squared = (size - 2 * cross).clamp_(min=0.0)
    near = (squared < _NEAR * size).fill_diagonal_(False).triu_()
    if bool(near.any()):
        exact = _differences(updates, params, near)
        squared = torch.where(near | near.t(), exact + exact.t(), squared)
    factor, is_apart = _overlap(updates, params, shared, min_overlap)
    return torch.where(is_apart, torch.inf, squared * factor).fill_diagonal_(0.0)


def distances_to(centre: Update, updates: Sequence[Update], params: Params) -> Tensor:
    """Squared distances of updates to a centre that holds what they hold, over that: (m,) float64, not scaled."""
    total = torch.zeros(len(updates), dtype=torch.float64)
    for name in params:
        for block in columns([*updates, centre], params, name, torch.float64):
            held = block.table < torch.inf
            difference = torch.where(held[:-1] & held[-1], block.table[:-1] - block.table[-1], 0.0)
            total += difference.square_().sum(1).to(total.device)
    return total


def inner_products(
    updates: Sequence[Update], params: Params, names: Iterable[str] | None = None, *, min_overlap: int = 1
) -> tuple[Tensor, Tensor]:
    """Inner products over the overlaps, scaled to the size of the union of all; and cosines there, in -1..1.

    Two (m, m) float64; 0 where a pair shares too little. An update that is zero has cosine 0 to every other.

    Args:
        updates: finite and without packed tensors.
        params: shapes and devices.
        names: of the parameters that are looked at; all by default.
        min_overlap: as in `distances`.
    """
    cross, own, shared = _products(updates, params, params if names is None else names)
    factor, is_apart = _overlap(updates, params, shared, min_overlap)
    length = own.sqrt()
    both = length * length.t()
    cosine = torch.where((both > 0) & ~is_apart, cross / both.clamp(min=1e-300), 0.0).clamp_(-1.0, 1.0)
    return torch.where(is_apart, 0.0, cross * factor), cosine


def _products(updates: Sequence[Update], params: Params, names: Iterable[str]) -> _Products:
    num = len(updates)
    found = _Products(*(torch.zeros(num, num, dtype=torch.float64) for _ in range(3)))
    for name in names:
        for block in columns(updates, params, name, params[name].dtype):
            _add_block_(found, block)
    # A product with a transpose need not be symmetric to the last bit, and ties are told by equality.
    return found._replace(cross=(found.cross + found.cross.t()) / 2)


def _add_block_(found: _Products, block: Columns) -> None:
    if block.is_full:
        table = _safe(block.table)
        cross = (table @ table.t()).double().to(found.cross.device)
        found.cross.add_(cross)
        found.own.add_(cross.diagonal().unsqueeze(1))
        found.shared.add_(table.shape[1])
        return
    held = block.table < torch.inf
    table, mask = _safe(block.table.masked_fill(~held, 0.0)), held.to(block.table)
    found.cross.add_((table @ table.t()).double().to(found.cross.device))
    found.own.add_((table.square() @ mask.to(table).t()).double().to(found.own.device))
    found.shared.add_((mask @ mask.t()).double().to(found.shared.device))


def _safe(table: Tensor) -> Tensor:
    if table.dtype == torch.float64 or not table.numel():
        return table
    lowest, highest = table.aminmax()  # a tenth of the time of abs().max()
    return table if max(-float(lowest), float(highest)) < _LARGE else table.double()


def _differences(updates: Sequence[Update], params: Params, pairs: Tensor) -> Tensor:
    """Squared differences over the overlap of the marked pairs (i, k); 0 for all others."""
    total = torch.zeros_like(pairs, dtype=torch.float64)
    rows = [(i, at) for i in range(len(pairs)) if len(at := pairs[i].nonzero().reshape(-1))]
    for name in params:
        for block in columns(updates, params, name, torch.float64):
            held = block.table < torch.inf
            table = block.table if block.is_full else block.table.masked_fill(~held, 0.0)
            for i, at in rows:
                difference = table[at] - table[i]
                if not block.is_full:
                    difference.mul_(held[at]).mul_(held[i])
                total[i, at] += difference.square_().sum(1).to(total.device)
    return total


def _overlap(updates: Sequence[Update], params: Params, shared: Tensor, min_overlap: int) -> tuple[Tensor, Tensor]:
    """Union over overlap, of each pair, and whether it shares too little to be compared."""
    union = num_union(updates, params)
    sizes = torch.tensor([num_held(update) for update in updates])
    smaller = torch.minimum(sizes.unsqueeze(0), sizes.unsqueeze(1))
    needed = (0.05 * smaller).ceil().clamp(min=min_overlap, max=max(1, union))
    # A factor of exactly 1 where both hold everything: then these are the plain distances, bit for bit.
    return union / shared.clamp(min=1), shared < needed

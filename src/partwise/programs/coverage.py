"""Who held what in a round: for rules that leave a coordinate alone where too few hold it."""

from __future__ import annotations

from collections.abc import Sequence

from partwise.core.aggregate import Coverage
from partwise.core.model import Params
from partwise.core.update import Update

__all__ = ["coverage"]


def coverage(updates: Sequence[Update], total: Update, params: Params) -> dict[str, int]:
    """What a rule did not move although somebody held it, and how few held what was held; nothing where all hold all.

    Example:
        >>> import torch
        >>> from partwise.core.index import Rows, Whole
        >>> E = torch.zeros(3, 2)
        >>> held = [
        ...     Update(Rows({"E": (3, 2)}, {"E": torch.tensor(r)}), {"E": torch.zeros(len(r), 2)})
        ...     for r in ([0, 1], [0])
        ... ]
        >>> coverage(held, held[1], {"E": E})
        {'coordinates_left': 2, 'fewest_holders': 1}
    """
    if not any(update.index.grain(name) for update in updates for name in update.index.shapes):
        return {}
    cover, moved = Coverage(params), Coverage(params)
    for update in updates:
        cover.add_(update.index, 1.0)
    moved.add_(total.index, 1.0)
    left, fewest = 0, len(updates)
    for name, holders in cover.weights.items():
        shape = params[name].shape
        held = holders.expand(shape)
        fewest = min([fewest, *held[held > 0].unique().int().tolist()])
        there = moved.weights[name].expand(shape) > 0 if name in moved.weights else held < 0
        left += int(((held > 0) & ~there).sum())
    return {"coordinates_left": left, "fewest_holders": fewest}

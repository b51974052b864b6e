"""Updates of different submodels side by side, one column per coordinate; absence is never read as zero.

Shapes: m updates, V coordinates in one parameter, c of them in a block, n present in a column.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from partwise.core.aggregate import Coverage, union_index
from partwise.core.index import Coords, Index, Joint, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, is_finite, wide_type

__all__ = [
    "Columns",
    "Rule",
    "at_least_one",
    "combine",
    "finite",
    "is_whole",
    "mean_of",
    "num_held",
    "num_union",
    "of_stretches",
    "only",
    "reduce_columns",
    "senders",
    "window_mean",
]

_ELEMENTS = 1 << 20  # of one block, m × c: what is in memory at a time, and in the cache
_LONG = 1 << 17  # of one update at a time, where its numbers are only added: fewer calls, and the sum is in the cache
_STRETCHES = 16  # at most, of a parameter's blocks: so many results wait to be added, whatever its size
Rule = Callable[["Columns"], Tensor]
_S = TypeVar("_S")
_T = TypeVar("_T")


class Columns(NamedTuple):
    """One block of columns.

    Args:
        start: flat position of its first column.
        table: (m, c), infinity where absent, so that sorting puts what is present first.
        present: (c,) int64, n of each column.
        room: m × c numbers that `ordered` may overwrite; none for new ones.
    """

    start: int
    table: Tensor
    present: Tensor
    room: Tensor | None = None

    @property
    def is_full(self) -> bool:
        """Whether everybody holds every column."""
        return not len(self.present) or int(self.present.min()) == len(self.table)

    def picked(self, chosen: Tensor) -> Columns:
        """Some of the columns; (c,) bool."""
        return (
            self if bool(chosen.all()) else Columns(self.start, self.table[:, chosen], self.present[chosen], self.room)
        )

    def ordered(self) -> Tensor:
        """(c, m), each column's values ascending: those that are present come first. To be used before the next."""
        if not self.table.is_cpu:
            return self.table.t().sort(dim=1).values
        room = self.table.new_empty(self.table.numel()) if self.room is None else self.room
        rows = room[: self.table.numel()].view(self.table.shape[1], len(self.table)).copy_(self.table.t())
        rows.numpy().sort(axis=1)  # NumPy sorts short rows with vector instructions, 15 times as fast as torch
        return rows


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
    at = update.index.coords(name)
    if bool((at[1:] >= at[:-1]).all()):
        return _Held(at, flat)
    at, order = at.sort()
    return _Held(at, flat[order])


class _Parameter:
    """One parameter of all updates, read block by block."""

    def __init__(self, updates: Sequence[Update], params: Params, name: str, dtype: torch.dtype) -> None:
        self._like, self._num = params[name], len(updates)
        # What has fewer digits than float32 is worked on in float32: NumPy knows no bfloat16.
        self._dtype = wide_type(dtype)
        self._holders = {i: _held(u, u.values()[name], name) for i, u in enumerate(updates) if name in u.value}
        self._is_full = len(self._holders) == self._num and all(held.at is None for held in self._holders.values())
        here = self._like.device
        self._is_plain = (
            bool(self._holders)
            and self._is_full
            and all((held.flat.dtype, held.flat.device) == (self._dtype, here) for held in self._holders.values())
        )
        self._width = max(1, _ELEMENTS // max(1, self._num))
        size = min(self._width, self._like.numel()) if self._is_full else 0
        self._everybody = torch.full((size,), self._num, dtype=torch.int64, device=here)
        rows = [held.flat.split(self._width) for held in self._holders.values()] if self._is_plain else []
        self._pieces = list(zip(*rows, strict=True))  # of each block

    def starts(self) -> range:
        return range(0, self._like.numel(), self._width)

    def block(self, room: _Room, start: int) -> Columns:
        """The columns from `start` on, in memory that the next block with the same room is put in."""
        size = min(self._like.numel(), start + self._width) - start
        device, count = self._like.device, self._num * size
        if room.table is None or room.ordered is None:
            room.table, room.ordered = (
                torch.empty(count, dtype=self._dtype, device=device) for _ in range(2)
            )  # the first block is the largest
        table = room.table[:count].view(self._num, size)
        self._fill_(table, start)
        if self._is_full:
            present = self._everybody[:size]
        else:
            present = (table < torch.inf).sum(0)
        return Columns(start, table, present, room.ordered)

    def _fill_(self, table: Tensor, start: int) -> None:
        if self._is_plain:  # one call for all rows, in a third of the time of one for each
            torch.cat(self._pieces[start // self._width], out=table.view(-1))
            return
        if not self._is_full:
            table.fill_(torch.inf)
        for i, held in self._holders.items():
            held.fill_(table[i], start)


class _Room(threading.local):
    """Memory of a thread for one block after another: what is allocated anew costs as much as what is done with it."""

    table: Tensor | None = None
    ordered: Tensor | None = None


def of_stretches(
    updates: Sequence[Update],
    params: Params,
    name: str,
    dtype: torch.dtype,
    function: Callable[[Iterable[Columns]], _T],
) -> list[_T]:
    """A function of each of a few stretches of one parameter's blocks, in order; they are the same for any threads."""
    parameter, room = _Parameter(updates, params, name, dtype), _Room()
    starts = parameter.starts()
    step = max(1, -(-len(starts) // _STRETCHES))

    def of(first: int) -> _T:
        return function(map(partial(parameter.block, room), starts[first : first + step]))

    return _threaded(of, range(0, len(starts), step))


def _threaded(function: Callable[[_S], _T], items: Sequence[_S]) -> list[_T]:
    """A function of every block or update, as many at once as torch may use threads: one is too small for several."""
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [function(item) for item in items]
    torch.set_num_threads(1)  # of each thread that begins now; else each would wait for a team of its own
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def finite(updates: Sequence[Update], allowed: int, part: object) -> list[Update]:
    """The updates without those that hold NaN or infinity, which count among the faulty.

    Raises:
        ValueError: more of them than the rule is built for.
    """
    is_large = sum(map(num_held, updates)) > _ELEMENTS
    fine = _threaded(is_finite, updates) if is_large else map(is_finite, updates)
    kept = [update.unpacked() for update, is_fine in zip(updates, fine, strict=True) if is_fine]
    if len(updates) - len(kept) > allowed:
        raise ValueError(
            f"{part!r}: allows {allowed} faulty among {len(updates)} updates, got {len(updates) - len(kept)} that are "
            "not finite. Look at those clients' data, or lower the local learning rate."
        )
    return kept


def senders(updates: Sequence[Update], replies: Sequence[ReplyInfo]) -> list[ReplyInfo]:
    """Whose updates `finite` keeps, in the same order; nobody's where it is not told who sent them."""
    return [reply for update, reply in zip(updates, replies, strict=True) if is_finite(update)] if replies else []


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
        parameter = _Parameter(updates, params, name, like.dtype)
        blocks = _threaded(partial(_of_block, parameter, _Room(), mask, rule), parameter.starts())
        flat = torch.cat([like.new_empty(0), *blocks]).to(like.dtype)  # of a parameter of no elements there is no block
        if bool(moved.all()):
            whole[name], value[name] = None, flat.reshape(like.shape)
        elif moved.numel() == moved.shape[0] == like.shape[0]:
            whole[name] = moved.reshape(-1).nonzero().reshape(-1)
            value[name] = flat.reshape(-1, *like.shape[1:])
        else:
            single[name], value[name] = mask.nonzero().reshape(-1), flat
    return Update(union_index(whole, single, params), value, float(len(updates)))


def _of_block(parameter: _Parameter, room: _Room, mask: Tensor, rule: Rule, start: int) -> Tensor:
    block = parameter.block(room, start)
    chosen = mask[start : start + block.table.shape[1]]
    if not bool(chosen.any()):
        return block.table.new_empty(0)
    return rule(block.picked(chosen)).to(block.table.dtype)


def window_mean(ordered: Tensor, start: Tensor | int, stop: Tensor | int) -> Tensor:
    """The mean of each column's values from place `start` to before `stop`, summed in float64.

    Args:
        ordered: (c, m), ascending: so that the sum does not depend on the updates' order.
        start: first place, of all columns or (c,) of each.
        stop: place after the last one.
    """
    if isinstance(start, int) and isinstance(stop, int):
        return ordered[:, start:stop].sum(1, dtype=torch.float64) / (stop - start)
    place = torch.arange(ordered.shape[1], device=ordered.device)
    first, last = (torch.as_tensor(t, device=ordered.device).reshape(-1, 1) for t in (start, stop))
    kept = torch.where((place >= first) & (place < last), ordered, 0.0)
    return kept.sum(1, dtype=torch.float64) / (last - first).reshape(-1)


def mean_of(block: Columns) -> Tensor:
    """The mean of what is present, added in float64."""
    if len(block.table) == 1:
        return block.table[0].clone()
    if block.is_full:
        return block.table.sum(0, dtype=torch.float64) / len(block.table)
    return torch.where(block.table < torch.inf, block.table, 0.0).sum(0, dtype=torch.float64) / block.present


def combine(
    updates: Sequence[Update], params: Params, weights: Tensor, *, least: int = 1, is_share: bool = False
) -> Update:
    """A weighted mean of updates, coordinate by coordinate over those that hold it.

    Args:
        updates: m, finite and without packed tensors.
        params: shapes, types and devices of the result.
        weights: (m,) float64.
        least: how many must hold a coordinate for it to move, >= 1.
        is_share: instead of the mean, the sum of weight times value, times m over the number of holders: then weights
            may be of either sign.
    """
    if least <= len(updates) and is_whole(updates, params) and all(_is_like(update, params) for update in updates):
        each, shares = [update.values() for update in updates], weights if is_share else weights / weights.sum()
        sums = {name: _weighted([v[name] for v in each], shares.tolist(), like) for name, like in params.items()}
        return Update(Whole(shapes_of(params)), sums, float(len(updates)))

    def rule(block: Columns) -> Tensor:
        by = weights.to(block.table)
        if block.is_full:
            return (by @ block.table) / (1.0 if is_share else weights.sum().to(block.table))
        held = block.table < torch.inf
        total = by @ block.table.masked_fill(~held, 0.0)
        if is_share:
            return total * (len(updates) / block.present)
        below = by @ held.to(by)
        return torch.where(below > 0, total / below, torch.zeros_like(total))

    return reduce_columns(updates, params, rule, least=least)


def is_whole(updates: Sequence[Update], params: Params) -> bool:
    """Whether every update holds every coordinate."""
    return all(
        update.index.shapes.keys() == params.keys() and not any(map(update.index.grain, params)) for update in updates
    )


def _is_like(update: Update, params: Params) -> bool:
    """Whether a whole update has the model's own types, of single precision or more, and lies where the model does."""
    held = update.values()
    return all(
        (held[name].dtype, held[name].device) == (like.dtype, like.device)
        and like.dtype in (torch.float32, torch.float64)
        for name, like in params.items()
    )


def _weighted(values: Sequence[Tensor], weights: Sequence[float], like: Tensor) -> Tensor:
    """The sum of weight times value, each value read once and none copied."""
    rows, total = [value.reshape(-1) for value in values], torch.empty_like(like).reshape(-1)

    def of(start: int) -> None:
        part = slice(start, start + _LONG)
        torch.mul(rows[0][part], weights[0], out=total[part])
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            total[part].add_(row[part], alpha=weight)

    _threaded(of, range(0, len(total), _LONG))
    return total.reshape(like.shape)


def at_least_one(part: str, least: int) -> None:
    """Refuse a least number of holders below 1."""
    if least < 1:
        raise ValueError(
            f"{part}(min_holders={least}): must be at least 1, got {least}. 3 is the least that can be checked."
        )


def only(update: Update, names: Iterable[str]) -> Update:
    """What an update says of some parameters, as whole tensors and ascending coordinates; its weight is 1."""
    values, shapes = update.values(), update.index.shapes
    held = {name: _held(update, values[name], name) for name in names if name in shapes}
    at = {name: found.at for name, found in held.items() if found.at is not None}
    whole = {name: tuple(shapes[name]) for name in held if name not in at}
    members: list[Index] = [Whole(whole)] if whole or not at else []
    if at:
        members.append(Coords({name: tuple(shapes[name]) for name in at}, at))
    value = {name: values[name] if found.at is None else found.flat for name, found in held.items()}
    return Update(members[0] if len(members) == 1 else Joint(tuple(members)), value)


def num_union(updates: Sequence[Update], params: Params) -> int:
    """How many coordinates some update holds."""
    cover = Coverage(params)
    for update in updates:
        cover.add_(update.index, 1.0)
    return sum(int((w > 0).expand(params[name].shape).sum()) for name, w in cover.weights.items())


def num_held(update: Update) -> int:
    """How many coordinates an update holds."""
    return sum(prod(update.index.held_shape(name)) for name in update.index.shapes)

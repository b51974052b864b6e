"""Aggregators: many updates in, one out; and the running sum that feeds those that need no more.

Shapes: a parameter has shape (V, ...); r of its rows are touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.index import Coords, Index, Joint, Rows, Weight, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.rowsum import RowSum
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, all_finite, scale, wide, wide_type

__all__ = [
    "Accumulator",
    "Aggregator",
    "Coverage",
    "Running",
    "Stack",
    "Sum",
    "Telling",
    "given_to",
    "makes_steps",
    "needs_senders",
    "sum_updates",
    "takes_sent",
    "told_by",
    "union_index",
]


@register
@dataclass(frozen=True, eq=False)
class Sum:
    """Weighted values and weights, summed over clients and kept where anybody held something.

    Args:
        index: the union of what was held.
        value: name -> sum of weight * scale * value, of the held shape; in float32 where values are of half precision.
        weight: name -> sum of weight * scale, broadcastable to the value.
        total: sum over clients of one weight each (of the largest, where a client's differ by row).
        count: number of updates summed.
        scale: sum over clients of weight * scale, over `total`: 1 where no update was scaled.
    """

    index: Index
    value: Values
    weight: Values
    total: float
    count: int
    scale: float = 1.0


@runtime_checkable
class Aggregator(Protocol):
    """Many updates in, one out. `needs`: whether the sum is enough or each update is wanted."""

    @property
    def needs(self) -> Literal["sum", "each"]: ...

    def init(self, params: Params, census: Census) -> Any: ...

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        """The aggregate, to be added to the model.

        Args:
            got: a Sum where `needs` is "sum"; else the updates, each already scaled, unless it `takes_sent`.
            state: what `init` or the last `reduce` gave.
            params: what it will be added to.
            replies: whose updates, in the same order.
        """
        ...


@runtime_checkable
class Telling(Protocol):
    """An aggregator that tells what it found out, beside the aggregate: whom it suspects, say."""

    def told(self, state: Any) -> Mapping[str, Any]:
        """Facts of the last `reduce`, for the run's record, as plain numbers, strings and lists; empty for none."""
        ...


def told_by(part: Aggregator, state: Any) -> dict[str, Any]:
    """What an aggregator tells of its last `reduce`, if it is one that tells."""
    return dict(part.told(state)) if isinstance(part, Telling) else {}


class Stack(Protocol):
    """Values of C clients that are not kept one by one."""

    def weighted(self, weights: Sequence[float]) -> Tensor:
        """The sum of the values, each times its weight, one per client."""
        ...


class Coverage:
    """Weights per coordinate, each parameter at the coarsest grain that still tells held from not held.

    Args:
        params: name -> tensor; only shapes and devices are used.
        device: where the weights lie; with the parameters by default.
        state: what was counted so far, to be gone on with in place: name -> weights per coordinate, and name -> the
            weight of those who held all of it, as far as it is not in the former.
    """

    def __init__(
        self, params: Params, device: torch.device | None = None, state: tuple[Values, dict[str, float]] | None = None
    ) -> None:
        self._params, self._device = params, device
        self._weights, self._even = ({}, {}) if state is None else state

    @property
    def weights(self) -> Values:
        """Name -> weights, of the parameter's shape or of that with 1 for the axes that do not matter."""
        for name, weight in self._even.items():
            self.allocate_(name, 0)
            self._weights[name] += weight
        self._even.clear()
        return self._weights

    def add_(self, index: Index, weight: Weight) -> None:
        """Add a weight where `index` touches."""
        if not isinstance(weight, Mapping) and not any(index.grain(name) for name in index.shapes):
            for name in index.shapes:
                self.add_all_(name, float(weight))
            return
        for name in index.shapes:
            axes = weight[name].dim() if isinstance(weight, Mapping) else 0
            self.allocate_(name, max(index.grain(name), axes))
        index.cover_(self._weights, weight)

    def add_all_(self, name: str, weight: float) -> None:
        """Add a weight to all of a parameter."""
        self._even[name] = self._even.get(name, 0.0) + weight

    def allocate_(self, name: str, grain: int) -> None:
        """Make room for a parameter whose held part shows in its first `grain` axes."""
        shape, device = tuple(self._params[name].shape), self._device or self._params[name].device
        coarse = shape[:grain] + (1,) * (len(shape) - grain)
        have = self._weights.get(name)
        if have is None:
            self._weights[name] = torch.zeros(coarse, dtype=torch.float64, device=device)
        elif any(h < c for h, c in zip(have.shape, coarse, strict=True)):
            finer = tuple(max(h, c) for h, c in zip(have.shape, coarse, strict=True))
            self._weights[name] = have.expand(finer).clone()


@register
@dataclass(eq=False)
class Running:
    """What an `Accumulator` has added so far; it can be saved and gone on with.

    Args:
        value: name -> sum over a whole parameter.
        rows: name -> sum over some rows; no name of `value`.
        cover: name -> weights per coordinate.
        even: name -> weight of those who held all of it, apart from `cover`.
        total: as in `Sum`.
        count: as in `Sum`.
        scaled: sum over clients of weight * scale.
    """

    value: Values = field(default_factory=dict)
    rows: dict[str, RowSum] = field(default_factory=dict)
    cover: Values = field(default_factory=dict)
    even: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    count: int = 0
    scaled: float = 0.0


class Accumulator:
    """A running `Sum` that owns its buffers: memory of what is touched, whatever the number of updates.

    Values of half precision are added in single precision, which the sum keeps: it may be larger than they can be.

    Args:
        params: name -> tensor; shapes, types and devices of the sums.
        state: what was added before; changed in place.
    """

    def __init__(self, params: Params, state: Running | None = None) -> None:
        self._params = params
        self._state = Running() if state is None else state
        self._cover = self._coverage()

    @property
    def state(self) -> Running:
        """What was added so far."""
        return self._state

    def _coverage(self) -> Coverage:
        return Coverage(self._params, state=(self._state.cover, self._state.even))

    def placed(self, values: Values) -> Values:
        """Values from another device where their sums are."""
        return {name: t.to(self._params[name].device) for name, t in values.items()}

    def add_(self, update: Update, scale: float = 1.0) -> None:
        """Add one update, weighted and scaled."""
        values, state, weight = {n: wide(v) for n, v in update.values().items()}, self._state, update.weight
        if isinstance(weight, Mapping):
            total = max((float(w.max()) for w in weight.values() if w.numel()), default=0.0)
            if scale != 1:
                weight = {name: w * scale for name, w in weight.items()}
            values = {n: v * _broadcast(weight[n], v) for n, v in values.items()}
            factor = 1.0
        else:
            total = float(weight)
            weight = factor = total * scale
        state.total += total
        state.scaled += total * scale
        for member in update.index.members if isinstance(update.index, Joint) else (update.index,):
            self._add_(member, values, factor, weight)
        state.count += 1

    def _add_(self, index: Index, values: Values, factor: float, weight: Weight) -> None:
        state, dense = self._state, list[str]()
        for name in index.shapes:
            at = index.rows[name] if isinstance(index, Rows) else None
            if at is None or name in state.value or _is_fine(weight, name, index.held_shape(name)):
                dense.append(name)
                continue
            value = values[name] if factor == 1 else values[name] * factor
            self._add_rows_(name, at, value, _per_row(weight, name, at.shape[0]))
        if not dense:
            return
        for name in dense:
            self._make_dense_(name)
        part = index if len(dense) == len(index.shapes) else _restricted(index, dense)
        part.scatter_add_(state.value, values, factor)
        self._cover.add_(part, weight)

    def add_stacked_(
        self, indices: Sequence[Index], values: Mapping[str, Tensor | Stack], weights: Sequence[float]
    ) -> bool:
        """Add the updates of C clients at once, in any order; False, and nothing is added, if that cannot be done.

        It cannot where a sum is not finite, where clients hold other things than whole parameters or rows, or where
        what some hold rows of was already added whole.

        Args:
            indices: one per client, over the same names.
            values: name -> (C, ...), or what stands for it where all hold all of it; of a client that holds fewer rows
                than there is room for, the first ones count.
            weights: one per client.
        """
        held = {name: _rows_of(indices, name) for name in indices[0].shapes}
        if any(rows is None or (rows and name in self._state.value) for name, rows in held.items()):
            return False
        sums = self.placed({name: wide(_weighted(values[name], rows or (), weights)) for name, rows in held.items()})
        if not all(all_finite(t) for t in sums.values()):
            return False
        total = sum(weights)
        for name, rows in held.items():
            if rows:
                self._add_rows_(name, torch.cat(list(rows)), sums[name], _each_row(weights, rows))
                continue
            if name in self._state.value or name in self._state.rows:
                self._make_dense_(name)
                self._state.value[name].add_(sums[name])
            else:
                self._state.value[name] = sums[name]
            self._cover.add_all_(name, total)
        self._state.total += total
        self._state.scaled += total
        self._state.count += len(weights)
        return True

    def _add_rows_(self, name: str, rows: Tensor, value: Tensor, weight: Tensor | float) -> None:
        if name not in self._state.rows:
            self._state.rows[name] = RowSum(self._params[name].shape[0])
        self._state.rows[name].add_(rows, value, weight)

    def _make_dense_(self, name: str) -> None:
        """Give a parameter a buffer of its own size: it is held whole, or by more than rows."""
        state = self._state
        if name in state.value:
            return
        state.value[name] = torch.zeros_like(self._params[name], dtype=wide_type(self._params[name].dtype))
        if name in state.rows:
            rows, value, weight = state.rows.pop(name).total()
            assert isinstance(weight, Tensor)
            part = Rows({name: tuple(self._params[name].shape)}, {name: rows})
            part.put_(state.value, {name: value})
            self._cover.add_(part, {name: weight})

    def take(self) -> Sum:
        """The sum so far; the accumulator is empty afterwards."""
        value: Values = {}
        weight: Values = {}
        whole: dict[str, Tensor | None] = {}
        single: dict[str, Tensor] = {}
        state = self._state
        alone = {name: w for name, w in state.even.items() if w > 0 and name not in state.cover}
        for name in alone:
            del state.even[name]
        cover_of = self._cover.weights
        self._state = Running()
        for name in self._params:  # in the parameters' order, however they were touched
            if name in state.rows:
                rows, value[name], per_row = state.rows[name].total()
                assert isinstance(per_row, Tensor)
                whole[name] = None if len(rows) == len(self._params[name]) else rows
                weight[name] = per_row.reshape(-1, *(1,) * (self._params[name].dim() - 1))
                continue
            if name in alone:  # all of it, by everybody: no need to look
                value[name], whole[name] = state.value[name], None
                shape = (1,) * self._params[name].dim()
                weight[name] = torch.full(shape, alone[name], dtype=torch.float64, device=self._params[name].device)
                continue
            if name not in cover_of:
                continue
            cover = cover_of[name]
            held = _kept(cover, tuple(self._params[name].shape))
            if isinstance(held, _Flat):
                single[name] = held.at
                value[name] = state.value[name].reshape(-1)[held.at]
                weight[name] = cover.expand(self._params[name].shape).reshape(-1)[held.at]
            else:
                whole[name] = held
                value[name] = state.value[name] if held is None else state.value[name][held]
                weight[name] = cover if held is None else cover[held]
        scale = state.scaled / state.total if state.total else 1.0
        got = Sum(union_index(whole, single, self._params), value, weight, state.total, state.count, scale)
        self._cover = self._coverage()
        return got


def union_index(whole: Mapping[str, Tensor | None], single: Mapping[str, Tensor], params: Params) -> Index:
    """The index over what several updates held together.

    Args:
        whole: name -> rows that were touched, (r,) int64 ascending; None for all of them.
        single: name -> flat positions that were touched, (c,) int64 ascending; no name of `whole`.
        params: their shapes.
    """
    if not single and all(at is None for at in whole.values()):
        return Whole(shapes_of(params, whole))
    rows, coords = Rows(shapes_of(params, whole), whole), Coords(shapes_of(params, single), single)
    return Joint((rows, coords)) if whole and single else coords if single else rows


def _restricted(index: Index, names: Collection[str]) -> Index:
    """The same rows of fewer parameters; only `Rows` mixes tables and whole parameters."""
    assert isinstance(index, Rows)
    return Rows({n: index.shapes[n] for n in names}, {n: index.rows[n] for n in names})


class _Flat(NamedTuple):
    at: Tensor


def _kept(cover: Tensor, shape: tuple[int, ...]) -> Tensor | None | _Flat:
    """What was touched: everything (None), some rows, or single coordinates."""
    touched = cover > 0
    if bool(touched.all()):
        return None
    if shape and cover.numel() == cover.shape[0] == shape[0]:
        return touched.reshape(-1).nonzero().reshape(-1)
    return _Flat(touched.expand(shape).reshape(-1).nonzero().reshape(-1))


def _rows_of(indices: Sequence[Index], name: str) -> Sequence[Tensor] | None:
    """The rows of one parameter that each client holds; () where all hold all of it, None where neither is so."""
    first = indices[0]
    if isinstance(first, Whole) and all(index is first for index in indices):
        return ()
    held = [index.rows.get(name) if isinstance(index, Rows) else None for index in indices]
    rows = [at for at in held if at is not None]
    if len(rows) == len(indices):
        return rows
    is_whole = not rows and all(name in index.shapes and not index.grain(name) for index in indices)
    return () if is_whole else None


def _weighted(value: Tensor | Stack, rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """(C, ...) -> the weighted sum (...) of what is whole; (C, R, ...) -> (r, ...), the weighted rows of each."""
    if not isinstance(value, Tensor):
        return value.weighted(weights)
    value = wide(value)
    if not rows:
        flat = value.reshape(len(value), -1)
        return torch.mv(flat.t(), flat.new_tensor(weights)).view(value.shape[1:])  # sum(0) takes 100 times as long
    room, flat = value.shape[1], value.flatten(0, 1)
    lengths = torch.tensor([at.shape[0] for at in rows])
    if bool((lengths < room).any()):
        begins = torch.arange(0, len(flat), room) - lengths.cumsum(0) + lengths
        at = torch.arange(int(lengths.sum())) + begins.repeat_interleave(lengths)
        flat = flat.index_select(0, at.to(flat.device))
    factor = _each_row(weights, rows)
    if not isinstance(factor, Tensor):
        return flat * factor
    return flat * factor.to(flat).reshape(-1, *(1,) * (flat.dim() - 1))


def _each_row(weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor | float:
    """The weight of every row that some clients hold, one after another; one number where all have it."""
    if len(set(weights)) == 1:
        return float(weights[0])
    return torch.tensor(weights, dtype=torch.float64).repeat_interleave(torch.tensor([at.shape[0] for at in rows]))


def _per_row(weight: Weight, name: str, rows: int) -> Tensor | float:
    return weight[name].double().reshape(-1).expand(rows) if isinstance(weight, Mapping) else float(weight)


def _is_fine(weight: Weight, name: str, held: tuple[int, ...]) -> bool:
    """Whether weights may differ within a row."""
    return isinstance(weight, Mapping) and any(n > 1 for n in weight[name].shape[1:]) and len(held) > 1


def _broadcast(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(weight.shape + (1,) * (value.dim() - weight.dim())).to(value.dtype)


def sum_updates(updates: Iterable[Update], params: Params, scales: Sequence[float] = ()) -> Sum:
    """The sum of some updates, in the order given; scales: of each, () for 1."""
    accumulator = Accumulator(params)
    for number, update in enumerate(updates):
        accumulator.add_(update, scales[number] if scales else 1.0)
    return accumulator.take()


def makes_steps(part: object) -> bool:
    """Whether an aggregator makes steps of the values that clients ended with: it `takes_ends`, or is around one."""
    while part is not None and not getattr(part, "takes_ends", False):
        part = getattr(part, "inner", None)
    return part is not None


def takes_sent(part: object) -> bool:
    """Whether an aggregator is around another one, and gets updates as they were sent: `given_to` scales them."""
    return bool(getattr(part, "takes_sent", False))


def needs_senders(part: object) -> bool:
    """Whether an aggregator, or one inside it, must be told who sent each update."""
    return part is not None and (getattr(part, "needs_senders", False) or needs_senders(getattr(part, "inner", None)))


def given_to(
    part: Aggregator, sent: Sequence[Update], params: Params, replies: Sequence[ReplyInfo]
) -> Sum | Sequence[Update]:
    """What an aggregator gets of updates as they were sent: their sum or each, with the scales of their replies."""
    scales = [reply.scale for reply in replies]
    if part.needs == "sum":
        return sum_updates(sent, params, scales)
    if takes_sent(part) or all(factor == 1 for factor in scales):
        return sent
    return [scale(update, factor) for update, factor in zip(sent, scales, strict=True)]

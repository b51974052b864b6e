"""Which words stand for which coordinates of a model, and updates as words and back.

A part is a parameter, cut into units: all of it, its rows, or single coordinates, as coarse as still tells held from
not held. A unit's words are its values, each times the weight, and the weight. Who does not hold a unit adds zeros.

Shapes: a part has u units of v values, and so a block of (u, v + 1) words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partwise.channels.protocol import FLOOR, NUMBERS, MaskLayout, Vector, model_digest
from partwise.channels.ring import FixedPoint, Ring, fitting_ring
from partwise.channels.round import Plan, Summed
from partwise.channels.streams import Words
from partwise.core.aggregate import Sum, union_index
from partwise.core.channel import Seat, fingerprint
from partwise.core.codec import register
from partwise.core.errors import ProtocolError
from partwise.core.index import Weight
from partwise.core.model import Params, Values
from partwise.core.population import Client
from partwise.core.update import Update, all_finite, wide

__all__ = ["Encoding", "Kind", "MaskPart", "Sender", "UpdatePlanner", "held_of", "sum_of", "told_of"]

Kind = Literal["whole", "rows", "coords"]  # from coarse to fine
Ids = NDArray[np.int64]
_LOSS_STEPS, _MOST_LOSS, _MOST_EXAMPLES = 2**12, 2.0**12, 2**24 - 1  # 2^14 clients may add them up in 64 bits


@dataclass(frozen=True)
class Encoding:
    """How values become words.

    Args:
        point: fixed point; its limit bounds every value.
        max_weight: W.
        min_contributors: a unit that fewer hold is not sent.
        is_sparse: whether each client sends its own rows, and not those of all.
        binds_model: whether clients that were given different values can have no sum.
        is_trusting: whether clients believe the server who holds what; else they bind all that they hold whole.
    """

    point: FixedPoint
    max_weight: int
    min_contributors: int
    is_sparse: bool = False
    binds_model: bool = True
    is_trusting: bool = True

    @property
    def binds_all(self) -> bool:
        """Whether what one client holds whole must be held whole by all."""
        return self.binds_model and not self.is_trusting

    def ring(self, clients: int) -> Ring:
        """In which the sum of so many cannot run over."""
        return fitting_ring(self.point.levels, self.max_weight, clients)

    def is_table(self, kind: str) -> bool:
        """Whether each client sends its own units."""
        return self.is_sparse and kind != "whole"


@register
class MaskPart(NamedTuple):
    """A parameter's part in a sum.

    Args:
        name: of the parameter.
        kind: what its units are.
        ids: which units, (u,) int64 ascending; None for all of them, or where each client sends its own.
        holders: how many clients hold each, (u,) int64; empty where each client sends its own.
    """

    name: str
    kind: str
    ids: Any
    holders: Any


def _units(shape: tuple[int, ...], kind: str) -> tuple[int, int]:
    """How many units a parameter has, and values a unit."""
    if kind == "rows":
        return shape[0], prod(shape[1:])
    return (1, prod(shape)) if kind == "whole" else (prod(shape), 1)


def _rank(kind: str) -> int:
    return get_args(Kind).index(kind)


def _kind(held: Any) -> str:
    return "whole" if held is None else str(held[0])


def held_of(update: Update) -> dict[str, Any]:
    """Name -> None for all of a parameter, or the kind of its units and which: what the server may know."""
    found: dict[str, Any] = {}
    for name, shape in update.index.shapes.items():
        grain = update.index.grain(name)
        by_index = "whole" if not grain else "rows" if grain == 1 and shape else "coords"
        kind = max(by_index, _kind_of_weight(update.weight, name), key=_rank)
        width = _units(tuple(shape), kind)[1]
        found[name] = None if kind == "whole" else (kind, update.index.coords(name).numpy()[::width] // width)
    return found


def _kind_of_weight(weight: Weight, name: str) -> str:
    if not isinstance(weight, Mapping) or weight[name].numel() <= 1:
        return "whole"
    return "rows" if weight[name].numel() == weight[name].shape[0] else "coords"


class Sender:
    """A client's side of the layout: what it holds, and its words.

    Args:
        update: what it sends.
        params: shapes of all parameters.
        encoding: how.
        seat: whose it is.
    """

    def __init__(self, update: Update, params: Params, encoding: Encoding, seat: Seat) -> None:
        self._update, self._values, self._encoding, self._seat = update, update.values(), encoding, seat
        if not math.isfinite(seat.loss) or not all(map(all_finite, self._values.values())):
            raise ValueError(
                "masked sum: needs a finite update and a finite loss, got NaN or infinity. Lower the learning rate or "
                "look at the data."
            )
        self._shapes = {name: tuple(t.shape) for name, t in params.items()}
        self.held = held_of(update)
        self.rows = {n: held[1] for n, held in self.held.items() if held is not None and encoding.is_table(held[0])}
        self._weights = {name: self._weights_of(name) for name in self.held}  # refused before anything is sent
        fine = [name for name, held in self.held.items() if held is not None and held[0] == "coords"]
        if encoding.is_sparse and fine:
            raise ValueError(
                f"Masked(layout='sparse'): sums whole parameters and rows, got single coordinates of {fine[:3]}. "
                "Use layout='union', or draw whole rows: RandomK(by_row=True)."
            )

    def _weights_of(self, name: str) -> NDArray[np.uint64]:
        """A whole number for each of the client's own units, or one for all."""
        weight, most = self._update.weight, self._encoding.max_weight
        if isinstance(weight, Mapping):
            held, of = self._update.index.held_shape(name), weight[name].double()
            if of.numel() > 1:
                of = of.reshape(of.shape + (1,) * (len(held) - of.dim())).expand(held)
            kind = "whole" if self.held[name] is None else self.held[name][0]
            found = of.reshape(-1).cpu().numpy()[:: _units(self._shapes[name], kind)[1] if of.numel() > 1 else 1]
        else:
            found = np.array([float(weight)])
        whole = np.rint(found)
        if ((found != whole) | (found < 0) | (found > most)).any():
            # Which one is not said: the server is told of a refusal, and a weight is what the mask is to hide.
            raise ValueError(
                f"Masked(max_weight={most}): weights are whole numbers in 0..{most}, got another. "
                "Raise max_weight, or weigh all clients alike."
            )
        numbers: NDArray[np.uint64] = whole.astype(np.uint64)
        return numbers

    def vector(self, layout: MaskLayout, holders: Mapping[str, Ids], asked: int) -> Vector:
        """The words that the client adds.

        Args:
            layout: as the server says.
            holders: table -> how many hold each of the client's rows.
            asked: how many clients have sent keys.

        Raises:
            ProtocolError: the layout is not as it should be.
        """
        self._check(layout, asked)
        ring, dense, tables, withheld = Ring(layout.bits), [], {}, 0
        for part in layout.parts:
            units, width = _units(self._shapes[part.name], part.kind)
            units = units if part.ids is None else len(part.ids)
            is_table = self._encoding.is_table(part.kind)
            if part.name not in self.held:
                dense += [] if is_table else [np.zeros((units, width + 1), ring.dtype)]
                if is_table:
                    tables[part.name] = np.zeros(0, np.int64), np.zeros((0, width + 1), ring.dtype)
                continue
            mine = self._own(part)
            at = mine if part.ids is None else np.searchsorted(part.ids, mine)
            counts = holders[part.name] if is_table else part.holders[at]
            few = counts < max(FLOOR, self._encoding.min_contributors)
            block = self._block(part, ring)
            if few.any():
                block[few], withheld = 0, withheld + int(few.sum())
            if is_table:
                tables[part.name] = mine, block
            else:
                dense.append(block if len(mine) == units else _placed(block, at, units))
        words = np.concatenate([*(block.reshape(-1) for block in dense), np.ones(1, ring.dtype)])
        return Vector(self._numbers(), words, tables, withheld)

    def _own(self, part: MaskPart) -> Ids:
        """The client's units, in the part's units, which are no coarser."""
        held, shape = self.held[part.name], self._shapes[part.name]
        if held is None:
            return np.arange(_units(shape, part.kind)[0])
        if held[0] == part.kind:
            own: Ids = held[1]
            return own
        width = _units(shape, "rows")[1]
        fine: Ids = (held[1][:, None] * width + np.arange(width)).reshape(-1)
        return fine

    def _block(self, part: MaskPart, ring: Ring) -> Words:
        """(u, v + 1) words of the client's own units."""
        units, width = len(self._own(part)), _units(self._shapes[part.name], part.kind)[1]
        values = self._values[part.name].detach().cpu().reshape(units, width)  # (u, v), also of no values
        values = wide(values)  # NumPy knows no bfloat16
        uniform = torch.rand(values.shape, generator=self._seat.rng).numpy()
        codes = self._encoding.point.encode(values.numpy(), uniform)
        weights = self._weights[part.name]
        if len(weights) > 1 and len(weights) < len(codes):  # the part's units are finer than the client's
            weights = np.repeat(weights, len(codes) // len(weights))
        block = np.empty((len(codes), width + 1), ring.dtype)
        np.multiply(codes, weights[:, None], out=block[:, :-1], casting="unsafe")
        block[:, -1] = weights
        return block

    def _numbers(self) -> NDArray[np.uint64]:
        """Sums that go with every vector: clients, weight, examples, and examples times loss."""
        seat, head = self._seat, np.zeros(NUMBERS, np.uint64)
        examples = min(seat.examples, _MOST_EXAMPLES)
        loss = min(max(seat.loss, -_MOST_LOSS), _MOST_LOSS)
        weight = max((int(w.max()) for w in self._weights.values() if len(w)), default=0)
        head[:3] = 1, weight, examples
        head[3:4] = np.array([round(examples * loss * _LOSS_STEPS)], np.int64).view(np.uint64)
        return head

    # What the server says

    def _check(self, layout: MaskLayout, asked: int) -> None:
        encoding, parts = self._encoding, layout.parts
        if not isinstance(parts, tuple) or not all(isinstance(part, MaskPart) for part in parts):
            raise _refusal("consists of parts", "others")
        names = [part.name for part in parts]
        if len(set(names)) < len(names) or not self.held.keys() <= set(names) <= self._shapes.keys():
            raise _refusal("names what the client holds, once", names)
        if layout.bits != encoding.ring(asked).bits:
            raise _refusal(f"has words of {encoding.ring(asked).bits} bits for {asked} clients", layout.bits)
        dense, tables = 1, []
        for part in parts:
            self._check_part(part, asked)
            units, width = _units(self._shapes[part.name], part.kind)
            if encoding.is_table(part.kind):
                tables.append((part.name, width + 1))
            else:
                dense += (units if part.ids is None else len(part.ids)) * (width + 1)
        whole = {part.name for part in parts if part.kind == "whole"}
        is_bound = encoding.binds_model or not layout.given
        if layout.dense != dense or layout.tables != tuple(tables) or not set(layout.given) <= whole or not is_bound:
            raise _refusal(f"has {dense} words and the tables {tables}", f"{layout.dense} and {layout.tables}")
        shared = {part.name for part in parts if part.kind == "whole" and int(part.holders[0]) == asked}
        if encoding.binds_model and set(layout.given) != shared:
            raise _refusal("binds every parameter that all were given whole", layout.given)
        if encoding.binds_all and not {name for name, held in self.held.items() if held is None} <= shared:
            raise _refusal("binds every parameter that the client holds whole", layout.given)

    def _check_part(self, part: MaskPart, asked: int) -> None:
        kinds, held = get_args(Kind), self.held.get(part.name)
        own = "whole" if held is None else held[0]
        if part.kind not in kinds or kinds.index(part.kind) < kinds.index(own):
            raise _refusal(f"cuts {part.name!r} as finely as the client holds it", part.kind)
        is_table = self._encoding.is_table(part.kind)
        units = _units(self._shapes[part.name], part.kind)[0]
        if is_table or part.ids is None:
            if part.ids is not None or (is_table and part.name in self.held and own != part.kind):
                raise _refusal(f"has each client send its own rows of {part.name!r}", "a list")
        elif not _is_ascending(part.ids, units):
            raise _refusal(f"lists units of {part.name!r} in 0..{units - 1}, ascending", "others")
        count = 0 if is_table else units if part.ids is None else len(part.ids)
        if not _is_ints(part.holders) or len(part.holders) != count or (count and part.holders.max() > asked):
            raise _refusal(f"tells how many of {asked} hold each unit of {part.name!r}", "other numbers")
        if part.name in self.held and part.ids is not None and not np.isin(self._own(part), part.ids).all():
            raise _refusal(f"lists every unit of {part.name!r} that the client holds", "fewer")


def _placed(block: Words, at: Ids, units: int) -> Words:
    whole: Words = np.zeros((units, block.shape[1]), block.dtype)
    whole[at] = block
    return whole


def _is_ints(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.int64 and array.ndim == 1


def _is_ascending(ids: Any, units: int) -> bool:
    if not _is_ints(ids):
        return False
    return not len(ids) or bool(ids[0] >= 0 and ids[-1] < units and (ids[1:] > ids[:-1]).all())


def _refusal(rule: str, got: object) -> ProtocolError:
    return ProtocolError(
        f"the client refuses: a layout {rule}, got {got}. Client and server must build the same model."
    )


# What the server makes of it


@dataclass(frozen=True, eq=False)
class UpdatePlanner:
    """Which words are summed, from what clients hold.

    Args:
        params: the server's parameters.
        encoding: how values become words.
    """

    params: Params
    encoding: Encoding

    def check(self, held: Any) -> None:
        if not isinstance(held, Mapping):
            raise ProtocolError("held: must be a mapping, got none. Send what the client holds.")
        for name, of in held.items():
            if name not in self.params:
                raise ProtocolError(f"held: must name parameters, got {name!r}. Build the same model.")
            shape = tuple(self.params[name].shape)
            is_good = of is None or (
                isinstance(of, tuple)
                and len(of) == 2
                and of[0] in get_args(Kind)[1:]
                and not (of[0] == "rows" and not shape)
                and _is_ascending(of[1], _units(shape, of[0])[0])
            )
            if not is_good:
                raise ProtocolError(f"held: units of {name!r} must be in {shape} and ascend, got others. Send those.")

    def misfits(self, held: Mapping[Client, Any]) -> dict[Client, str]:
        encoding, found = self.encoding, dict[Client, str]()
        setting = "layout='sparse'" if encoding.is_sparse else "identities"
        remedy = "layout='union'" if encoding.is_sparse else "binds_model=False"
        for name in self.params if encoding.is_sparse or encoding.binds_all else ():
            kinds = {client: _kind(h[name]) if name in h else "none" for client, h in held.items()}
            if encoding.is_sparse:
                kinds = {client: kind for client, kind in kinds.items() if kind != "none"}
            else:
                kinds = {client: kind if kind == "whole" else "part" for client, kind in kinds.items()}
            times = Counter(kinds.values())
            most = max(times, key=lambda kind: (times[kind], kind == "rows"), default="")
            for client in (c for c, kind in kinds.items() if kind != most):
                found[client] = (
                    f"client {client}: with {setting} all hold {name!r} in the same units, got {kinds[client]!r}, "
                    f"of most others {most!r}. Use {remedy} if clients hold different parts."
                )
        return found

    def plan(self, held: Mapping[Client, Any]) -> Plan:
        parts, dense, tables, given = [], 1, [], []
        rows: dict[str, dict[Client, Ids]] = {}
        for name in (n for n in self.params if any(n in h for h in held.values())):
            of = {client: h[name] for client, h in held.items() if name in h}
            part = self._part(name, of)
            parts.append(part)
            units, width = _units(tuple(self.params[name].shape), part.kind)
            if self.encoding.is_table(part.kind):
                tables.append((name, width + 1))
                rows[name] = {client: h[1] for client, h in of.items()}
                continue
            dense += (units if part.ids is None else len(part.ids)) * (width + 1)
            if self.encoding.binds_model and part.kind == "whole" and len(of) == len(held):
                given.append(name)
        bits = self.encoding.ring(len(held)).bits
        layout = MaskLayout(bits, dense, tuple(tables), tuple(given), tuple(parts))
        return Plan(layout, rows, model_digest(layout, {n: fingerprint(self.params[n]) for n in given}))

    def _part(self, name: str, held: Mapping[Client, Any]) -> MaskPart:
        shape = tuple(self.params[name].shape)
        kind = max(map(_kind, held.values()), key=_rank)
        if self.encoding.is_table(kind):
            return MaskPart(name, kind, None, np.zeros(0, np.int64))
        units = _units(shape, kind)[0]
        counts = np.zeros(units, np.int64)
        for h in held.values():
            if h is None:
                counts += 1
            elif h[0] == kind:
                counts[h[1]] += 1
            else:
                counts.reshape(shape[0], -1)[h[1]] += 1
        ids = np.flatnonzero(counts)
        return MaskPart(name, kind, None, counts) if len(ids) == units else MaskPart(name, kind, ids, counts[ids])


def sum_of(summed: Summed, params: Params, encoding: Encoding) -> Sum:
    """The sum that words stand for.

    Raises:
        ProtocolError: the words cannot be a sum of so many clients': somebody's masks did not cancel.
    """
    head, count = summed.head, len(summed.clients)
    if int(head[0]) != count or int(summed.dense[-1]) != count:
        raise ProtocolError(
            f"masked sum: each of {count} clients adds 1 to be counted by, got {int(head[0])} and "
            f"{int(summed.dense[-1])}. Some were told of another model, layout or keys than others; nothing was opened."
        )
    if int(head[1]) > count * encoding.max_weight:
        raise ProtocolError(
            f"masked sum: {count} clients of a weight of at most {encoding.max_weight} weigh "
            f"{count * encoding.max_weight} at most, got {int(head[1])}. Somebody sent more than clients do, or "
            "masks did not cancel; nothing was opened."
        )
    value: Values = {}
    weight: Values = {}
    whole: dict[str, Tensor | None] = {}
    single: dict[str, Tensor] = {}
    for part, ids, block in _blocks(summed, params, encoding):
        held = block[:, -1] > 0
        if not held.any():
            continue
        like, name = params[part.name], part.name
        if int(block[:, -1].max()) > int(head[1]):
            raise _unmasked(name)
        values, weights = _decoded(block[held] if not held.all() else block, encoding, name)
        at = (
            None
            if ids is None and held.all()
            else torch.from_numpy((np.arange(len(block)) if ids is None else ids)[held])
        )
        if part.kind == "coords":
            single[name] = torch.arange(len(block)) if at is None else at
            value[name], weight[name] = values.reshape(-1).to(like), weights
        else:
            whole[name] = at
            shape = like.shape if part.kind == "whole" else (len(values), *like.shape[1:])
            value[name] = values.to(like).reshape(shape)
            weight[name] = weights.reshape(-1, *(1,) * (like.dim() - 1)) if like.dim() else weights.reshape(())
    return Sum(union_index(whole, single, params), value, weight, float(head[1]), count)


def _blocks(summed: Summed, params: Params, encoding: Encoding) -> Iterator[tuple[MaskPart, Ids | None, Words]]:
    """Each part, its units (None for all), and its words (u, v + 1)."""
    start = 0
    for part in summed.plan.layout.parts:
        units, width = _units(tuple(params[part.name].shape), part.kind)
        if encoding.is_table(part.kind):
            ids, block = summed.tables[part.name]
            yield part, None if len(ids) == units else ids, block
            continue
        size = (units if part.ids is None else len(part.ids)) * (width + 1)
        yield part, part.ids, summed.dense[start : start + size].reshape(-1, width + 1)
        start += size


def _decoded(block: Words, encoding: Encoding, name: str) -> tuple[Tensor, Tensor]:
    """Sums of weighted values (u, v) and of weights (u,)."""
    weights = block[:, -1].astype(np.float64)
    if (block[:, :-1] > (weights * encoding.point.levels)[:, None]).any():
        raise _unmasked(name)
    return torch.from_numpy(encoding.point.decode(block[:, :-1], weights[:, None])), torch.from_numpy(weights)


def _unmasked(name: str) -> ProtocolError:
    return ProtocolError(
        f"masked sum: no sum of {name!r} exceeds the weight of its holders, nor their weight that of all, got one that "
        "does. Somebody's masks did not cancel; nothing was opened."
    )


def told_of(summed: Summed) -> dict[str, float]:
    """Numbers of all clients together: `examples`, mean `loss` by examples, and `withheld`."""
    examples = int(summed.head[2])
    total = int(summed.head[3:4].view(np.int64)[0]) / _LOSS_STEPS
    told = {"examples": float(examples), "loss": total / examples if examples else 0.0}
    return {**told, "median_loss": told["loss"], **({"withheld": float(summed.withheld)} if summed.withheld else {})}

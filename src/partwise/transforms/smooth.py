"""Values spread over their neighbours before they are quantised, and gathered again once all sums are made.

Shapes: a parameter with several axes has rows of its first axis, of m values each; n of them are held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod, sqrt

import torch
from torch import Tensor

from partwise.core.index import Index, Rows
from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, wide
from partwise.transforms.quantize import smoothed

__all__ = ["Smooth"]

_MOST = 10


@dataclass(frozen=True)
class Smooth:
    """H x for each run of 2^order values of a row, with H the orthonormal Hadamard matrix, which is its own inverse.

    Put it first into the client chain and first into the server chain: between the two, sums are made of what is
    spread, so that quantising again on the way, as a cluster does that sums its members first, needs no turning back.
    A row's last values are cut into runs that are powers of two, largest first, so that rows stay as long as they are.
    Parameters with one axis are left alone. Of a row that is held in part, the rest counts as no change, and is sent.

    `Quantize(smooth=...)` does the same inside one message, and needs nothing on the server.

    Args:
        order: in 0..10; 5 is that of SDP4Bit.

    Raises:
        ValueError: weights that differ within a row: what is spread has no weights of its own.

    Source: Jia et al., "SDP4Bit: toward 4-bit communication quantization in sharded data parallelism for LLM training",
        NeurIPS 2024, arXiv:2410.15526, section 3.2.
    Differs: orthonormal, so that no value overflows and a norm stays what it is; by rows, so that clients may hold
        different ones; no padding.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (1, 4)}), {"w": torch.tensor([[8.0, 0.0, 0.0, 0.0]])})
        >>> spread, _ = Smooth(order=2).apply(update, (), torch.Generator())
        >>> spread.values()["w"], Smooth(order=2).apply(spread, (), torch.Generator())[0].values()["w"]
        (tensor([[4., 4., 4., 4.]]), tensor([[8., 0., 0., 0.]]))
    """

    order: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.order <= _MOST:
            raise ValueError(f"Smooth(order={self.order}): must lie in 0..{_MOST}, got {self.order}. 5 is usual.")

    def limited(self, before: Limit) -> Limit:
        return before

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        held = update.values()
        self._check_weights(update, held)
        tall = {name: len(shape) > 1 and prod(shape) > 0 for name, shape in update.index.shapes.items()}
        if any(tall[name] and update.index.grain(name) > 1 for name in held):
            index, held = _by_rows(update.index, held)
            update = Update(index, held, update.weight)
        return replace(update, value={n: self._spread(v) if tall[n] and len(v) else v for n, v in held.items()}), state

    def _check_weights(self, update: Update, held: Values) -> None:
        if not isinstance(update.weight, Mapping):
            return
        for name, value in held.items():
            most = len(value) if len(update.index.shapes[name]) > 1 and update.index.grain(name) < 2 else 1
            if len(update.index.shapes[name]) > 1 and update.weight[name].numel() > most:
                raise ValueError(
                    f"{self!r}: needs weights that are the same all over a row, got others in {name!r}. Use weights by "
                    "examples, or by rows."
                )

    def _spread(self, value: Tensor) -> Tensor:
        flat = wide(value.reshape(len(value), -1))  # (n, m)
        parts = []
        for at, order, count in _runs(flat.shape[1], self.order):
            run = flat[:, at : at + (count << order)]
            parts.append(smoothed(run.reshape(-1), order).reshape(run.shape) / sqrt(1 << order))
        return torch.cat(parts, 1).to(value.dtype).reshape(value.shape)


def _runs(width: int, order: int) -> Iterator[tuple[int, int, int]]:
    """Where runs begin in a row, the order of each, and how many of it follow one another."""
    at = 0
    while at < width:
        this = min(order, (width - at).bit_length() - 1)
        count = (width - at) >> this if this == order else 1
        yield at, this, count
        at += count << this


def _by_rows(index: Index, held: Values) -> tuple[Rows, Values]:
    """The same, with zeros where a row is not held, in parameters of several axes."""
    rows: dict[str, Tensor | None] = {}
    value: Values = {}
    for name, of in held.items():
        shape, width = tuple(index.shapes[name]), prod(index.shapes[name][1:])
        if not index.grain(name) or not shape:
            if of.numel():
                rows[name], value[name] = None, of.reshape(shape)
            continue
        at = index.coords(name).to(of.device)
        found, place = (at // width).unique(return_inverse=True)
        table = of.new_zeros(len(found), width)
        table[place, at % width] = of.reshape(-1)
        rows[name], value[name] = found.cpu(), table.reshape(len(found), *shape[1:])
    return Rows({name: tuple(index.shapes[name]) for name in rows}, rows), value

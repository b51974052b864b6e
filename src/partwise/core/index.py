"""Which coordinates a submodel or an update covers: linear maps P with their transpose.

Shapes: a parameter has shape (V, ...); r rows or c coordinates of it are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.model import Params, Values

__all__ = ["Coords", "Grid", "Index", "Joint", "Rows", "Shapes", "Weight", "Whole", "members_of", "shapes_of"]

Shapes = Mapping[str, tuple[int, ...]]
Weight = float | Mapping[str, Tensor]


def shapes_of(params: Params, names: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of all parameters or of the named ones."""
    return {name: tuple(params[name].shape) for name in (params if names is None else names)}


@runtime_checkable
class Index(Protocol):
    """A linear map P from all parameters to what is held, and its transpose.

    `shapes` names what is held, wholly or in part, with the shape of the whole parameter.
    """

    @property
    def shapes(self) -> Shapes: ...

    def gather(self, params: Params) -> Values:
        """P x: the held values, copied; but what is held whole (grain 0) is the parameter itself, not to be changed."""
        ...

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        """target += scale * Pᵀ values, in place."""
        ...

    def put_(self, target: Params, values: Params) -> None:
        """Overwrite what is held of `target` with `values`, in place; exact where adding would round."""
        ...

    def cover_(self, target: Params, weight: Weight) -> None:
        """target += weight where P touches, in place.

        Args:
            target: name -> the parameter's shape, or that shape with 1 for every axis from `grain(name)` on.
            weight: one number, or name -> weights broadcast from the left over the held values.
        """
        ...

    def grain(self, name: str) -> int:
        """How many leading axes it takes to tell held from not held: 0 when all is held."""
        ...

    def held_shape(self, name: str) -> tuple[int, ...]:
        """The shape that `gather` gives one parameter."""
        ...

    def coords(self, name: str) -> Tensor:
        """Flat positions in the whole parameter, int64, ascending, in the order of the gathered values.

        So values are gathered in the order in which they lie: of some columns of a matrix row by row, (rows, columns).
        """
        ...


def _left(weight: Tensor, like: Tensor) -> Tensor:
    return weight.reshape(weight.shape + (1,) * (like.dim() - weight.dim())).to(like.dtype)


def _weight_of(weight: Weight, name: str, held: tuple[int, ...], like: Tensor) -> Tensor | float:
    """The weight of one parameter, ready to be added to `held`-shaped values."""
    if not isinstance(weight, Mapping):
        return float(weight)
    return _left(weight[name], torch.empty((0,) * len(held))).to(like.dtype)


def _ascending(name: str, at: Tensor, limit: int, part: str, unit: str) -> None:
    """Refuse positions that are not int64, ascending, unique and below `limit`."""
    if at.dtype != torch.int64 or at.dim() != 1:
        raise TypeError(
            f"{part}({name!r}): {unit} must be a one-dimensional int64 tensor, got {at.dtype} with {at.dim()} axes. "
            "Use torch.unique(ids)."
        )
    if len(at) and (int(at[0]) < 0 or int(at[-1]) >= limit):
        raise ValueError(
            f"{part}({name!r}): {unit} must lie in 0..{limit - 1}, got {int(at.min())}..{int(at.max())}. "
            "Check the ids in the data against the size of the table."
        )
    if len(at) > 1 and not bool((at[1:] > at[:-1]).all()):
        raise ValueError(
            f"{part}({name!r}): {unit} must ascend without repeats, got {at[:8].tolist()}…. Use torch.unique(ids)."
        )


@register
@dataclass(frozen=True, eq=False)
class Whole:
    """All coordinates of the named parameters.

    Args:
        shapes: name -> shape of the parameter.

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> Whole(shapes_of(params)).gather(params)["w"]
        tensor([1., 2.])
    """

    shapes: Shapes

    def gather(self, params: Params) -> Values:
        return {name: params[name] for name in self.shapes}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        if self.shapes:
            torch._foreach_add_([target[n] for n in self.shapes], [values[n] for n in self.shapes], alpha=scale)

    def put_(self, target: Params, values: Params) -> None:
        for name in self.shapes:
            target[name].copy_(values[name])

    def cover_(self, target: Params, weight: Weight) -> None:
        for name, shape in self.shapes.items():
            target[name].add_(_weight_of(weight, name, shape, target[name]))

    def grain(self, name: str) -> int:
        return 0

    def held_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.shapes[name])

    def coords(self, name: str) -> Tensor:
        return torch.arange(prod(self.shapes[name]))


@register
@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of axis 0.

    Args:
        shapes: name -> shape (V, ...) of the whole parameter.
        rows: name -> (r,) int64, ascending and unique; None for all rows. A name left out is not held.

    Raises:
        TypeError: rows of another type.
        ValueError: rows outside 0..V-1, out of order or repeated.

    Example:
        >>> index = Rows({"E": (4, 2)}, {"E": torch.tensor([1, 3])})
        >>> index.gather({"E": torch.arange(8.0).reshape(4, 2)})["E"]
        tensor([[2., 3.],
                [6., 7.]])
    """

    shapes: Shapes
    rows: Mapping[str, Tensor | None]

    def __post_init__(self) -> None:
        _same_names("Rows", self.shapes, self.rows)
        for name, at in self.rows.items():
            if at is not None:
                _ascending(name, at, self.shapes[name][0], "Rows", "rows")

    def gather(self, params: Params) -> Values:
        return {n: params[n] if r is None else params[n][r] for n, r in self.rows.items()}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        whole = [name for name, at in self.rows.items() if at is None]
        if whole:
            torch._foreach_add_([target[n] for n in whole], [values[n] for n in whole], alpha=scale)
        for name, at in self.rows.items():
            if at is not None:
                target[name].index_add_(0, at, values[name], alpha=scale)

    def put_(self, target: Params, values: Params) -> None:
        for name, at in self.rows.items():
            if at is None:
                target[name].copy_(values[name])
            else:
                target[name].index_copy_(0, at, values[name])

    def cover_(self, target: Params, weight: Weight) -> None:
        for name, at in self.rows.items():
            amount = _weight_of(weight, name, self.held_shape(name), target[name])
            if at is None:
                target[name].add_(amount)
            else:
                target[name][at] = target[name][at] + amount

    def grain(self, name: str) -> int:
        return 0 if self.rows[name] is None else 1

    def held_shape(self, name: str) -> tuple[int, ...]:
        at, shape = self.rows[name], tuple(self.shapes[name])
        return shape if at is None else (len(at), *shape[1:])

    def coords(self, name: str) -> Tensor:
        at, width = self.rows[name], prod(self.shapes[name][1:])
        if at is None:
            return torch.arange(prod(self.shapes[name]))
        return (at.unsqueeze(1) * width + torch.arange(width)).reshape(-1)


@register
@dataclass(frozen=True, eq=False)
class Grid:
    """An outer product of positions per axis: a thinner layer.

    Args:
        shapes: name -> shape of the whole parameter.
        axes: name -> one entry per axis, (r,) int64 ascending and unique, or None for the whole axis.

    Example:
        >>> index = Grid({"W": (3, 3)}, {"W": (torch.tensor([0, 2]), torch.tensor([1]))})
        >>> index.gather({"W": torch.arange(9.0).reshape(3, 3)})["W"]
        tensor([[1.],
                [7.]])
    """

    shapes: Shapes
    axes: Mapping[str, tuple[Tensor | None, ...]]

    def __post_init__(self) -> None:
        _same_names("Grid", self.shapes, self.axes)
        for name, axes in self.axes.items():
            if len(axes) != len(self.shapes[name]):
                raise ValueError(
                    f"Grid({name!r}): needs one entry per axis of {self.shapes[name]}, got {len(axes)}. "
                    "Use None for whole axes."
                )
            for axis, at in enumerate(axes):
                if at is not None:
                    _ascending(name, at, self.shapes[name][axis], "Grid", f"positions of axis {axis}")

    def _at(self, name: str) -> tuple[Tensor, ...]:
        """Index tensors that broadcast to the held shape."""
        axes, shape = self.axes[name], self.shapes[name]
        last = len(shape) - 1
        full = [torch.arange(size) if at is None else at for at, size in zip(axes, shape, strict=True)]
        return tuple(at.reshape((-1,) + (1,) * (last - axis)) for axis, at in enumerate(full))

    def _is_whole(self, name: str) -> bool:
        return all(at is None for at in self.axes[name])

    def gather(self, params: Params) -> Values:
        return {n: params[n] if self._is_whole(n) else params[n][self._at(n)].clone() for n in self.axes}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        for name in self.axes:
            if self._is_whole(name):
                target[name].add_(values[name], alpha=scale)
            else:
                at = self._at(name)
                target[name][at] = target[name][at].add_(values[name], alpha=scale)

    def put_(self, target: Params, values: Params) -> None:
        for name in self.axes:
            if self._is_whole(name):
                target[name].copy_(values[name])
            else:
                target[name][self._at(name)] = values[name]

    def cover_(self, target: Params, weight: Weight) -> None:
        for name in self.axes:
            if self._is_whole(name):
                target[name].add_(_weight_of(weight, name, self.shapes[name], target[name]))
                continue
            sizes = zip(target[name].shape, self.shapes[name], strict=True)
            is_fine = [size == full for size, full in sizes]
            at = tuple(a if fine else torch.zeros_like(a[:1]) for a, fine in zip(self._at(name), is_fine, strict=True))
            held = tuple(map(len, at))  # of each, the first axis is its own; torch.broadcast_shapes is slow
            target[name][at] = target[name][at] + _weight_of(weight, name, held, target[name])

    def grain(self, name: str) -> int:
        return max((axis + 1 for axis, at in enumerate(self.axes[name]) if at is not None), default=0)

    def held_shape(self, name: str) -> tuple[int, ...]:
        return tuple(
            size if at is None else len(at) for size, at in zip(self.shapes[name], self.axes[name], strict=True)
        )

    def coords(self, name: str) -> Tensor:
        flat = torch.zeros((), dtype=torch.int64)
        for size, at in zip(self.shapes[name], self._at(name), strict=True):
            flat = flat * size + at
        return flat.reshape(-1)


@register
@dataclass(frozen=True, eq=False)
class Coords:
    """Single coordinates.

    Args:
        shapes: name -> shape of the whole parameter.
        at: name -> (c,) int64 flat positions, ascending and unique. Held values have shape (c,).

    Example:
        >>> index = Coords({"w": (2, 2)}, {"w": torch.tensor([0, 3])})
        >>> index.gather({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})["w"]
        tensor([1., 4.])
    """

    shapes: Shapes
    at: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _same_names("Coords", self.shapes, self.at)
        for name, at in self.at.items():
            _ascending(name, at, prod(self.shapes[name]), "Coords", "positions")

    def gather(self, params: Params) -> Values:
        return {name: params[name].reshape(-1)[at] for name, at in self.at.items()}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        for name, at in self.at.items():
            target[name].view(-1).index_add_(0, at, values[name], alpha=scale)

    def put_(self, target: Params, values: Params) -> None:
        for name, at in self.at.items():
            target[name].view(-1).index_copy_(0, at, values[name])

    def cover_(self, target: Params, weight: Weight) -> None:
        for name, at in self.at.items():
            flat = target[name].view(-1)
            flat[at] = flat[at] + _weight_of(weight, name, (len(at),), flat)

    def grain(self, name: str) -> int:
        return max(1, len(self.shapes[name]))

    def held_shape(self, name: str) -> tuple[int, ...]:
        return (len(self.at[name]),)

    def coords(self, name: str) -> Tensor:
        return self.at[name]


@register
@dataclass(frozen=True, eq=False)
class Joint:
    """Several indices over different parameters, side by side.

    Args:
        members: indices that share no name.

    Raises:
        ValueError: a name held by two members.
    """

    members: tuple[Index, ...]
    shapes: Shapes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for member in self.members:
            twice = shapes.keys() & member.shapes.keys()
            if twice:
                raise ValueError(
                    f"Joint(): a parameter belongs to one member, got {sorted(twice)} twice. Merge those members."
                )
            shapes.update(member.shapes)
        object.__setattr__(self, "shapes", shapes)

    def _of(self, name: str) -> Index:
        return next(member for member in self.members if name in member.shapes)

    def gather(self, params: Params) -> Values:
        return {name: value for member in self.members for name, value in member.gather(params).items()}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        for member in self.members:
            member.scatter_add_(target, values, scale)

    def put_(self, target: Params, values: Params) -> None:
        for member in self.members:
            member.put_(target, values)

    def cover_(self, target: Params, weight: Weight) -> None:
        for member in self.members:
            member.cover_(target, weight)

    def grain(self, name: str) -> int:
        return self._of(name).grain(name)

    def held_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name).held_shape(name)

    def coords(self, name: str) -> Tensor:
        return self._of(name).coords(name)


def members_of(index: Index) -> tuple[Index, ...]:
    """The indices side by side in one, none of them a `Joint`; of any other, itself."""
    if not isinstance(index, Joint):
        return (index,)
    return tuple(part for member in index.members for part in members_of(member))


def _same_names(part: str, shapes: Shapes, held: Mapping[str, object]) -> None:
    if shapes.keys() != held.keys():
        raise ValueError(
            f"{part}(): shapes must name exactly what is held, got {sorted(shapes)} and {sorted(held)}. "
            "Use shapes_of(params, names)."
        )

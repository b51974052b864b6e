"""An update: an index, a value and a weight; the only thing that is trained, sent and summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.errors import ProtocolError
from partwise.core.index import Index, Weight
from partwise.core.model import Params, Values

__all__ = [
    "Packed",
    "Update",
    "all_finite",
    "check_shapes",
    "check_update",
    "has_finite_weight",
    "inner",
    "is_finite",
    "map_values",
    "norm",
    "not_finite",
    "scale",
    "scaled_within",
    "sent_shapes",
    "to_dense",
    "typed",
    "wide",
    "wide_type",
]


@runtime_checkable
class Packed(Protocol):
    """A tensor kept in fewer bytes; unpacking is exact, the loss lies in the transform that packed it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def unpack(self) -> Tensor: ...


@register
@dataclass(frozen=True, eq=False)
class Update:
    """What a client adds to the model, where, and what it counts for.

    Args:
        index: which coordinates.
        value: name -> tensor of the held shape: end minus start, to be **added**. May be packed on the way.
        weight: in examples unless said otherwise: one number, or name -> weights broadcast from the left.

    Example:
        >>> from partwise.core.index import Whole
        >>> u = Update(Whole({"w": (2,)}), {"w": torch.tensor([3.0, 4.0])}, weight=10.0)
        >>> norm(u), norm(scale(u, 0.5))
        (5.0, 2.5)
    """

    index: Index
    value: Mapping[str, Tensor | Packed]
    weight: Weight = 1.0

    def values(self) -> Values:
        """The value with every packed tensor unpacked."""
        return {n: v if isinstance(v, Tensor) else v.unpack() for n, v in self.value.items()}

    def unpacked(self) -> Update:
        """The same update without packed tensors."""
        return replace(self, value=self.values())


def sent_shapes(value: Mapping[str, Tensor | Packed]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each value. Nothing is unpacked: a few bytes may stand for a tensor of any size."""
    together = getattr(value, "shapes", None)  # of values packed as one, of which a look at one unpacks all
    if together is not None:
        return {name: tuple(shape) for name, shape in together.items()}
    return {name: tuple(v.shape) for name, v in value.items()}


def map_values(update: Update, function: Callable[[Tensor], Tensor]) -> Update:
    """The update with `function` applied to each of its tensors."""
    return replace(update, value={n: function(v) for n, v in update.values().items()})


def scale(update: Update, factor: float) -> Update:
    """factor * value, same index and weight."""
    return map_values(update, lambda v: v * factor)


def scaled_within(update: Update, factor: float, longest: float) -> Update:
    """factor * value, a little less where it would be rounded to something longer than `longest`.

    Args:
        update: finite.
        factor: >= 0, with which the norm is `longest` at most, but for rounding.
        longest: > 0.
    """
    found, less = scale(update, factor), 0.0
    while less < 1 and norm(found) > longest:
        less = 2 * less or 2 * max(torch.finfo(v.dtype).eps for v in found.values().values())
        found = scale(update, factor * max(0.0, 1 - less))
    return found


def typed(update: Update, params: Params) -> Update:
    """The update in the parameters' types."""
    values = {name: value.to(params[name].dtype) for name, value in update.values().items()}
    return replace(update, value=values)


def norm(update: Update) -> float:
    """Euclidean norm over all held coordinates, summed in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(v, dtype=torch.float64)) for v in update.values().values()))


def inner(one: Update, other: Update) -> float:
    """Inner product over the coordinates that both hold, summed in float64.

    Example:
        >>> from partwise.core.index import Rows, Whole
        >>> a = Update(Rows({"E": (3, 1)}, {"E": torch.tensor([0, 2])}), {"E": torch.tensor([[5.0], [3.0]])})
        >>> b = Update(Whole({"E": (3, 1)}), {"E": torch.tensor([[2.0], [9.0], [-1.0]])})
        >>> inner(a, b)
        7.0
    """
    left, right = one.values(), other.values()
    total = 0.0
    for name in (n for n in one.index.shapes if n in other.index.shapes):
        a, b = _where_both(name, one.index, left[name].reshape(-1), other.index, right[name].reshape(-1))
        total += float(torch.dot(a.double(), b.double()))
    return total


def _where_both(name: str, index: Index, a: Tensor, other: Index, b: Tensor) -> tuple[Tensor, Tensor]:
    """Values that two indices gathered of one parameter, (c,) each, at the coordinates of both."""
    if not index.grain(name):
        return (a if not other.grain(name) else a[other.coords(name)]), b
    if not other.grain(name):
        return a, b[index.coords(name)]
    at, held = index.coords(name), other.coords(name)  # both ascend
    if not len(held):
        return a[:0], b[:0]
    near = torch.searchsorted(held, at).clamp_(max=len(held) - 1)
    is_held = held[near] == at
    return a[is_held], b[near[is_held]]


def to_dense(update: Update, params: Params) -> Values:
    """Pᵀ v with the shapes, types and devices of `params`; zero where nothing is held."""
    dense = {name: torch.zeros_like(t) for name, t in params.items()}
    update.index.scatter_add_(dense, update.values())
    return dense


def is_finite(update: Update) -> bool:
    """Whether every value and weight is a finite number."""
    return has_finite_weight(update) and all(all_finite(t) for t in update.values().values())


def has_finite_weight(update: Update) -> bool:
    """Whether every weight is a finite number."""
    if isinstance(update.weight, Mapping):
        return all(map(all_finite, update.weight.values()))
    return math.isfinite(update.weight)


def not_finite(part: object) -> ValueError:
    """What a part says that is given NaN or infinity, and cannot work with them."""
    return ValueError(
        f"{part!r}: needs a finite update, got NaN or infinity. Lower the learning rate or look at the data."
    )


def all_finite(t: Tensor) -> bool:
    """Whether every element is a finite number."""
    # A sum that is finite has finite terms, and takes a tenth of the time; one that is not may have run over.
    return math.isfinite(t.sum()) or bool(torch.isfinite(t).all())


def check_update(update: Update, params: Params) -> None:
    """Refuse an update that does not fit `params`.

    Raises:
        ProtocolError: no update, unknown parameter, wrong shape of parameter, index or value, a held parameter without
            a weight where others have one each, or a weight below zero or beyond what float32 holds.
    """
    _check_made(update)
    check_shapes(update.index, params)
    if update.value.keys() != update.index.shapes.keys():
        raise ProtocolError(
            f"Update(): values must be given for exactly what the index holds, got {sorted(update.value)} "
            f"for {sorted(update.index.shapes)}. Send every held parameter."
        )
    for name, shape in sent_shapes(update.value).items():
        expected = update.index.held_shape(name)
        if shape != expected:
            raise ProtocolError(
                f"Update({name!r}): the value must have the held shape {expected}, got {shape}. "
                "Send end minus start of what was gathered."
            )
    missing = update.index.shapes.keys() - update.weight.keys() if isinstance(update.weight, Mapping) else ()
    if missing:
        raise ProtocolError(
            f"Update(): must have a weight for every parameter it holds, or one for all, got none for "
            f"{sorted(missing)}. Give all of them."
        )
    (lowest, highest), most = _range(update.weight), torch.finfo(torch.float32).max
    if highest > most:
        raise ProtocolError(
            f"Update(): the weight must be at most {most:.3g}, got {highest:.3g}. Send a number of examples."
        )
    if lowest < 0:
        raise ProtocolError(f"Update(): the weight must be at least 0, got {lowest}. Send a number of examples.")


def check_shapes(index: Index, params: Params) -> None:
    """Refuse an index that is of another model.

    Raises:
        ProtocolError: unknown parameter, or wrong shape of one.
    """
    for name, shape in index.shapes.items():
        if name not in params:
            raise ProtocolError(
                f"Update(): must name parameters of the model, got {name!r}. The model has {sorted(params)}."
            )
        if tuple(shape) != tuple(params[name].shape):
            raise ProtocolError(
                f"Update({name!r}): the index is for shape {tuple(shape)}, "
                f"the parameter has {tuple(params[name].shape)}. Client and server must build the same model."
            )


def _check_made(update: object) -> None:
    """Refuse what is no update, or one of other things than an index, tensors by name and numbers."""
    if not isinstance(update, Update):
        raise _other("Update()", "an Update(index, value, weight)", update)
    if not isinstance(getattr(update.index, "shapes", None), Mapping):
        raise _other("Update(index=...)", "an index, such as site.whole()", update.index)
    if not isinstance(update.value, Mapping):
        raise _other("Update(value=...)", "a dict of tensors by name", update.value)
    weights = update.weight.values() if isinstance(update.weight, Mapping) else ()
    if not isinstance(update.weight, Real | Tensor | Mapping) or not all(isinstance(w, Tensor) for w in weights):
        raise _other("Update(weight=...)", "a number, or a dict of tensors by name", update.weight)
    if getattr(update.value, "shapes", None) is None:  # a look at one of values packed as one unpacks all
        for name, value in update.value.items():
            if not isinstance(value, Tensor) and not hasattr(value, "unpack"):
                raise _other(f"Update({name!r})", "a tensor as value", value)


def _other(what: str, kind: str, got: object) -> ProtocolError:
    name = "None" if got is None else f"a {type(got).__name__}"
    return ProtocolError(f"{what}: must be {kind}, got {name}. Give one.")


def _range(weight: Weight) -> tuple[float, float]:
    """The least and the largest weight."""
    if not isinstance(weight, Mapping):
        return float(weight), float(weight)
    ends = [torch.aminmax(w) for w in weight.values() if w.numel()]
    return min((float(low) for low, _ in ends), default=0.0), max((float(high) for _, high in ends), default=0.0)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """In which values are added up, and moments kept: at least single precision. In bfloat16, 256 and 1 are 256."""
    return torch.promote_types(dtype, torch.float32)


def wide(value: Tensor) -> Tensor:
    """The value in that type."""
    return value.to(wide_type(value.dtype))

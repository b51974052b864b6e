"""Sending few coordinates, and remembering what is still owed.

Shapes: c coordinates are held of one parameter, k of them are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.index import Coords, Index
from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.transform import State, Transform
from partwise.core.update import Update

__all__ = ["ErrorFeedback", "Residual", "Scope", "TopK", "WhenAbsent"]

Scope = Literal["global", "layer"]
WhenAbsent = Literal["carry", "drop"]


@dataclass(frozen=True)
class TopK:
    """The k coordinates of largest magnitude; ties go to the lower position, names in alphabetical order.

    What is not sent counts as not held: behind this, `Mean("cohort")` reads it as no change, while a mean over
    holders divides by those who sent. An update that is sent whole stays as it is.

    Args:
        k: how many coordinates, >= 1; a number of them, or
        ratio: a share of what is held, in (0, 1], rounded to the nearest number and at least one. Give one of the two.
        scope: `global` counts over all parameters together, `layer` in each parameter.

    Raises:
        ValueError: a value that is NaN: it has no rank.

    Source: Aji and Heafield, EMNLP 2017, arXiv:1704.05021; Stich et al., "Sparsified SGD with memory", NeurIPS 2018,
        arXiv:1809.07599.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (2, 2)}), {"w": torch.tensor([[3.0, -1.0], [0.5, -2.0]])})
        >>> sent, _ = TopK(k=2).apply(update, (), torch.Generator())
        >>> sent.index.coords("w"), sent.value["w"]
        (tensor([0, 3]), tensor([ 3., -2.]))
    """

    k: int | None = None
    ratio: float | None = None
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise ValueError(
                f"TopK(k={self.k}, ratio={self.ratio}): needs either k or ratio, got "
                f"{'neither' if self.k is None else 'both'}. Use ratio=0.01 to send one in a hundred."
            )
        if self.k is not None and self.k < 1:
            raise ValueError(f"TopK(k={self.k}): must be at least 1, got {self.k}. Send one coordinate or more.")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(
                f"TopK(ratio={self.ratio}): must lie in (0, 1], got {self.ratio}. 0.01 is usual, 1 sends all."
            )
        if self.scope not in get_args(Scope):
            raise ValueError(
                f"TopK(scope={self.scope!r}): must be 'global' or 'layer', got {self.scope!r}. Choose one."
            )

    def limited(self, before: Limit) -> Limit:
        return before  # what is left out makes an update no longer

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        names = sorted(values)
        if self.scope == "global":
            sizes = [values[n].numel() for n in names]
            flat = torch.cat([values[n].reshape(-1).abs() for n in names]) if names else torch.empty(0)
            chosen = dict(zip(names, _largest(flat, self._count(flat)).split(sizes), strict=True)) if names else {}
        else:
            chosen = {n: _largest(values[n].reshape(-1).abs(), self._count(values[n])) for n in names}
        if all(bool(mask.all()) for mask in chosen.values()):
            return update, state
        return _restricted(update, values, {n: mask for n, mask in chosen.items() if bool(mask.any())}), state

    def _count(self, held: Tensor) -> int:
        return self.k if self.k is not None else max(1, round((self.ratio or 0.0) * held.numel()))


def _largest(magnitude: Tensor, k: int) -> Tensor:
    """A mask of the k largest; among equals, the first. (c,) -> (c,) bool."""
    if k >= magnitude.numel():
        return torch.ones_like(magnitude, dtype=torch.bool)
    if bool(magnitude.isnan().any()):
        raise ValueError("TopK(): needs an update without NaN, got one. Lower the learning rate or look at the data.")
    threshold = torch.topk(magnitude, k, sorted=False).values.min()
    mask = magnitude > threshold
    equal = (magnitude == threshold).nonzero().reshape(-1)
    mask[equal[: k - int(mask.sum())]] = True
    return mask


def _restricted(update: Update, values: Values, chosen: Mapping[str, Tensor]) -> Update:
    """The update at the chosen held coordinates, weights included."""
    index, weight = update.index, update.weight
    places = {name: mask.nonzero().reshape(-1) for name, mask in chosen.items()}
    at, kept = {}, {}
    for name, place in places.items():
        positions = index.coords(name).to(place.device)[place]
        at[name], order = positions.sort()  # an index of somebody else's may gather in another order
        places[name] = place[order]
        kept[name] = values[name].reshape(-1)[places[name]]
    if isinstance(weight, Mapping):
        weight = {n: _per_coordinate(weight[n], values[n])[places[n]] for n in places}
    return Update(Coords({n: tuple(index.shapes[n]) for n in places}, at), kept, weight)


def _per_coordinate(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(weight.shape + (1,) * (value.dim() - weight.dim())).expand(value.shape).reshape(-1)


@register
class Residual(NamedTuple):
    """What error feedback still owes, by position in the whole parameter; nothing where nothing is owed.

    Args:
        at: name -> (c,) int64 flat positions, ascending.
        value: name -> (c,), what is owed there.
        inner: the state of the transform that is corrected.
    """

    at: dict[str, Tensor]
    value: dict[str, Tensor]
    inner: State


@dataclass(frozen=True)
class ErrorFeedback:
    """Sends inner(update + residual) and keeps the difference: residual + sent = owed.

    The residual belongs to coordinates of the whole model, so it stays right when the client's submodel changes.

    Args:
        inner: a transform that loses something, such as `TopK`. It may leave coordinates out, not add any.
        when_absent: what becomes of the residual of a coordinate that is not held now: `carry` keeps it until the
            coordinate is held again, `drop` forgets it, and with it the balance.

    Raises:
        ValueError: `inner` sent a coordinate that is not held.

    Source: Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847.
    Differs: the residual is kept per global coordinate, for submodels that change.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (3,)}), {"w": torch.tensor([3.0, -1.0, 0.5])})
        >>> part = ErrorFeedback(TopK(k=1))
        >>> sent, state = part.apply(update, part.init({"w": torch.empty(3, device="meta")}), torch.Generator())
        >>> sent.value["w"], state.at["w"], state.value["w"]
        (tensor([3.]), tensor([1, 2]), tensor([-1.0000,  0.5000]))
    """

    inner: Transform
    when_absent: WhenAbsent = "carry"

    def __post_init__(self) -> None:
        if self.when_absent not in get_args(WhenAbsent):
            raise ValueError(
                f"ErrorFeedback(when_absent={self.when_absent!r}): must be 'carry' or 'drop', "
                f"got {self.when_absent!r}. 'carry' loses nothing."
            )

    def init(self, params: Params) -> State:
        return Residual({}, {}, self.inner.init(params))

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        positions = {name: _positions(update.index, name) for name in update.index.shapes}
        owed: dict[str, Tensor] = {}
        at: dict[str, Tensor] = {}
        value: dict[str, Tensor] = {}
        for name, held in update.values().items():
            flat = held.reshape(-1).clone()
            if name in state.at:
                place, is_held = _find(positions[name], state.at[name])
                owing = state.value[name].to(flat)
                flat[place[is_held]] += owing[is_held]
                at[name], value[name] = state.at[name][~is_held], owing[~is_held]
            owed[name] = flat.reshape(held.shape)
        sent, inner = self.inner.apply(replace(update, value=owed), state.inner, rng)
        left = _subtracted(owed, positions, sent)
        is_kept = self.when_absent == "carry"
        kept_at = {n: a for n, a in {**state.at, **at}.items() if is_kept}
        kept_value = {n: v for n, v in {**state.value, **value}.items() if is_kept}
        for name, rest in left.items():
            place = rest.nonzero().reshape(-1)
            known = positions[name]
            _merge_(kept_at, kept_value, name, place if known is None else known.to(place.device)[place], rest[place])
        return sent, Residual(kept_at, kept_value, inner)


def _positions(index: Index, name: str) -> Tensor | None:
    """Flat positions of what is held; None for all of it."""
    return None if index.grain(name) == 0 else index.coords(name)


def _find(positions: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor]:
    """Where `at` lies among `positions`, and which of `at` are there at all."""
    if positions is None:
        return at, torch.ones_like(at, dtype=torch.bool)
    if not len(positions):
        return at, torch.zeros_like(at, dtype=torch.bool)
    ordered, order = positions.sort()
    place = torch.searchsorted(ordered, at).clamp_(max=len(ordered) - 1)
    return order[place], ordered[place] == at


def _subtracted(owed: Values, positions: Mapping[str, Tensor | None], sent: Update) -> Values:
    """What was owed minus what was sent, flat."""
    left = {name: value.reshape(-1).clone() for name, value in owed.items()}
    for name, value in sent.values().items():
        held = positions.get(name, torch.empty(0, dtype=torch.int64))
        place, is_held = _find(held, sent.index.coords(name))
        if not bool(is_held.all()):
            raise ValueError(
                f"ErrorFeedback(): the inner transform must send held coordinates only, got others of {name!r}. "
                "Put a part that adds coordinates on the server."
            )
        left[name][place] -= value.reshape(-1)
    return left


def _merge_(at: Values, value: Values, name: str, new_at: Tensor, new_value: Tensor) -> None:
    """Add entries at new positions, in order; a name that owes nothing is left out."""
    if name in at:
        new_at, new_value = torch.cat([at.pop(name), new_at]), torch.cat([value.pop(name), new_value])
    if len(new_at):
        at[name], order = new_at.sort()
        value[name] = new_value[order]

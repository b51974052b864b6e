"""What a client remembers of its updates, coordinate by coordinate: what was not sent, and their momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.compressor import chosen, common, compressors
from partwise.core.index import Coords, Index, Joint, Shapes
from partwise.core.joined import FLOATS, float_name
from partwise.core.model import Params, Values
from partwise.core.rng import Rng
from partwise.core.transform import State, Transform
from partwise.core.update import Update, all_finite, not_finite, wide
from partwise.transforms.bits import places

__all__ = ["ErrorFeedback", "Momentum", "Residual", "WhenAbsent"]

WhenAbsent = Literal["carry", "drop", "flush"]
_HALF = (torch.bfloat16, torch.float16)


@register
class Residual(NamedTuple):
    """What error feedback still owes, by position in the whole parameter; nothing where nothing is owed.

    Of half-precision values it is kept in single precision: what is small would vanish beside what is large.

    Args:
        at: name -> (c,) int64 flat positions, ascending; not there where the parameter was last held whole.
        value: name -> (c,), what is owed there; of a parameter without positions, of all of it.
        shapes: name -> shape of the whole parameter.
        inner: the state of the transform that is corrected.
        half: name -> type of the parameter, where that is of half precision.
    """

    at: dict[str, Tensor]
    value: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    inner: State
    half: dict[str, str]


@dataclass(frozen=True)
class ErrorFeedback:
    """Sends inner(update + residual) and keeps the difference: residual + sent = owed.

    The residual belongs to coordinates of the whole model, so it stays right when the client's submodel changes. What
    was sent counts as received: of a message that is lost on its way, or refused, nothing is sent again.

    Args:
        inner: a transform that loses something, such as `TopK`. It may leave coordinates out, not add any.
        when_absent: what becomes of the residual of a coordinate that is not held now: `carry` keeps it until the
            coordinate is held again, `flush` sends it as it is, once, and that message's other values unpacked, `drop`
            forgets it, and with it the balance.

    Raises:
        ValueError: `inner` is unbiased, whose errors need no correction and would be sent twice; or it sent a
            coordinate that is not held; or an update that is not finite.

    Source: Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847.
    Differs: the residual is kept per global coordinate, for submodels that change.

    Example:
        >>> from partwise.core.index import Whole
        >>> from partwise.transforms import TopK
        >>> update = Update(Whole({"w": (3,)}), {"w": torch.tensor([3.0, -1.0, 0.5])})
        >>> part = ErrorFeedback(TopK(k=1))
        >>> sent, state = part.apply(update, part.init({"w": torch.empty(3, device="meta")}), torch.Generator())
        >>> sent.value["w"], state.value["w"]
        (tensor([3.]), tensor([ 0.0000, -1.0000,  0.5000]))
    """

    inner: Transform
    when_absent: WhenAbsent = "carry"

    def __post_init__(self) -> None:
        if self.when_absent not in get_args(WhenAbsent):
            raise ValueError(
                f"ErrorFeedback(when_absent={self.when_absent!r}): must be 'carry', 'flush' or 'drop', "
                f"got {self.when_absent!r}. 'carry' loses nothing."
            )
        if _is_unbiased(self.inner):
            raise ValueError(
                f"ErrorFeedback(inner={self.inner!r}): needs a compressor that is biased, got one that is right on "
                "average, whose noise would come twice. Use it by itself, or without its unbiased rounding or scale."
            )

    def common(self, seed: int) -> ErrorFeedback:
        return replace(self, inner=common(self.inner, seed))

    def chosen(self, number: int) -> ErrorFeedback:
        return replace(self, inner=chosen(self.inner, number))

    def init(self, params: Params) -> State:
        return Residual({}, {}, {}, self.inner.init(params), {})

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        positions = {name: _positions(update.index, name) for name in update.index.shapes}
        values = _finite(self, update)
        absent_at, absent = _absent(state, positions)
        owed: Values = {}
        for name, held in values.items():
            flat = wide(held).reshape(-1)
            owed[name] = _with_debt(flat, state, name, positions[name]).reshape(held.shape)
        given = {name: t.to(values[name].dtype) for name, t in owed.items()}
        sent, inner = self.inner.apply(replace(update, value=given), state.inner, rng)
        kept_at, kept = (absent_at, absent) if self.when_absent == "carry" else ({}, {})
        for name, rest in _subtracted(owed, positions, sent).items():
            _keep_(kept_at, kept, name, positions[name], rest)
        shapes = {**state.shapes, **{name: tuple(shape) for name, shape in update.index.shapes.items()}}
        half = {**state.half, **{n: float_name(self, v.dtype) for n, v in values.items() if v.dtype in _HALF}}
        if self.when_absent == "flush" and absent:
            owing = {n: _sparse(absent_at, absent, n) for n in absent}
            owing = {n: (at, v.to(FLOATS[half[n]] if n in half else v.dtype)) for n, (at, v) in owing.items()}
            sent = _with_flushed(sent, owing, shapes)
        return sent, Residual(
            kept_at, kept, {n: shapes[n] for n in kept}, inner, {n: half[n] for n in kept if n in half}
        )


@dataclass(frozen=True)
class Momentum:
    """m <- beta m + (1 - beta) x, of which m is sent: the client's own mean of its updates, the last ones first.

    What is not held now keeps its momentum. With a sign behind it, one local step, a vote and a step on the server it
    is Signum: `client=(Momentum(), Sign(scaled=False))`, `aggregator=MajorityVote()`, `server=(Scale(lr),)`.

    Args:
        beta: in (0, 1).

    Raises:
        ValueError: an update that is not finite.

    Source: Bernstein et al., "signSGD with majority vote is communication efficient and fault tolerant", ICLR 2019,
        arXiv:1810.05291, algorithm 1.
    Differs: weight decay on the server's side is not part of it.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (1,)}), {"w": torch.tensor([1.0])})
        >>> part = Momentum(0.5)
        >>> _, state = part.apply(update, part.init({}), torch.Generator())
        >>> part.apply(update, state, torch.Generator())[0].value["w"]
        tensor([0.7500])
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"Momentum(beta={self.beta}): must lie in (0, 1), got {self.beta}. 0.9 is usual.")

    def init(self, params: Params) -> State:
        return Residual({}, {}, {}, (), {})

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        positions = {name: _positions(update.index, name) for name in update.index.shapes}
        values = _finite(self, update)
        kept_at, kept = _absent(state, positions)
        sent: Values = {}
        for name, held in values.items():
            share = wide(held).reshape(-1) * ((1 - self.beta) / self.beta)
            mean = _with_debt(share, state, name, positions[name]).mul_(self.beta)
            sent[name] = mean.reshape(held.shape).to(held.dtype)
            _keep_(kept_at, kept, name, positions[name], mean.clone())
        shapes = {**state.shapes, **{name: tuple(shape) for name, shape in update.index.shapes.items()}}
        return replace(update, value=sent), Residual(kept_at, kept, {name: shapes[name] for name in kept}, (), {})


def _finite(part: object, update: Update) -> Values:
    """The values, looked at before anything is added to them: what is kept would never be finite again."""
    values = update.values()
    if not all(map(all_finite, values.values())):
        raise not_finite(part)
    return values


def _is_unbiased(part: Transform) -> bool:
    """Whether all that loses something in it is right on average, promised or, as Eden's scale, without a bound."""
    found = [inside for each in compressors(part) for inside in getattr(each, "options", (each,))]
    known = [each for inside in found for each in compressors(inside)]
    return bool(known) and all(c.claims(2).omega is not None or getattr(c, "unbiased", False) for c in known)


def _positions(index: Index, name: str) -> Tensor | None:
    """Flat positions of what is held; None for all of it."""
    return None if index.grain(name) == 0 else index.coords(name)


def _sparse(at: Values, value: Values, name: str) -> tuple[Tensor, Tensor]:
    """Positions and amounts of what is owed of one parameter."""
    if name in at:
        return at[name], value[name]
    found = places(value[name] != 0)
    return found, value[name][found]


def _absent(state: Residual, positions: Mapping[str, Tensor | None]) -> tuple[Values, Values]:
    """What is owed of coordinates that are not held now."""
    at: Values = {}
    value: Values = {}
    for name in state.value:
        if name in positions and positions[name] is None:
            continue
        if name not in positions and name not in state.at:
            value[name] = state.value[name]
            continue
        owed_at, owing = _sparse(state.at, state.value, name)
        _, is_held = _find(positions.get(name, owed_at[:0]), owed_at)
        if not bool(is_held.all()):
            at[name], value[name] = owed_at[~is_held], owing[~is_held]
    return at, value


def _with_debt(flat: Tensor, state: Residual, name: str, positions: Tensor | None) -> Tensor:
    """Held values and what is owed of them, in a buffer of its own."""
    if name not in state.value:
        return flat.clone()
    if positions is None and name not in state.at:
        return state.value[name].to(flat).add_(flat)  # the state is consumed: no new memory
    at, owing = _sparse(state.at, state.value, name)
    flat = flat.clone()
    place, is_held = _find(positions, at.to(flat.device))
    flat[place[is_held]] += owing.to(flat)[is_held]
    return flat


def _find(positions: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor]:
    """Where `at` lies among `positions`, and which of `at` are there at all."""
    if positions is None:
        return at, torch.ones_like(at, dtype=torch.bool)
    if not len(positions):
        return at, torch.zeros_like(at, dtype=torch.bool)
    ordered, order = positions.to(at.device).sort()
    place = torch.searchsorted(ordered, at).clamp_(max=len(ordered) - 1)
    return order[place], ordered[place] == at


def _subtracted(owed: Values, positions: Mapping[str, Tensor | None], sent: Update) -> Values:
    """What was owed minus what was sent, flat; in the buffers of `owed`, unless they were sent themselves."""
    values = sent.values()
    given = {value.untyped_storage().data_ptr() for value in values.values()}
    left = {}
    for name, value in owed.items():
        flat = value.reshape(-1)
        left[name] = flat.clone() if flat.untyped_storage().data_ptr() in given else flat
    for name, value in values.items():
        held = positions.get(name, torch.empty(0, dtype=torch.int64))
        if not sent.index.grain(name) and held is None:
            left[name] -= value.reshape(-1)
            continue
        place, is_held = _find(held, sent.index.coords(name).to(value.device))
        if not bool(is_held.all()):
            raise ValueError(
                f"ErrorFeedback(): the inner transform must send held coordinates only, got others of {name!r}. "
                "Put a part that adds coordinates on the server."
            )
        left[name][place] -= value.reshape(-1)
    return left


def _keep_(at: Values, value: Values, name: str, positions: Tensor | None, rest: Tensor) -> None:
    """Add what is owed of held coordinates; a parameter that owes nothing is left out."""
    if positions is None:
        if float(rest.sum()) or bool(rest.any()):  # a sum is ten times as fast
            value[name] = rest
        return
    place = places(rest != 0)
    new_at, new = positions.to(place.device)[place], rest[place]
    if name in value:
        new_at, new = torch.cat([at.pop(name).to(new_at.device), new_at]), torch.cat([value.pop(name).to(new), new])
    if len(new_at):
        at[name], order = new_at.sort()
        value[name] = new[order]


def _with_flushed(sent: Update, owed: Mapping[str, tuple[Tensor, Tensor]], shapes: Shapes) -> Update:
    """The update and, as they are, coordinates that are no longer held."""
    if isinstance(sent.weight, Mapping):
        raise ValueError(
            "ErrorFeedback(when_absent='flush'): needs one weight for an update, got weights per row, of which "
            "coordinates that are not held have none. Use 'carry'."
        )
    if not owed.keys() & sent.index.shapes.keys():
        gone = Coords({n: shapes[n] for n in owed}, {n: at for n, (at, _) in owed.items()})
        return Update(Joint((sent.index, gone)), {**sent.value, **{n: v for n, (_, v) in owed.items()}}, sent.weight)
    here, at, value = sent.values(), {}, {}
    for name in {**here, **owed}:  # an index cannot be taken apart: all of it becomes coordinates
        parts = [owed[name]] if name in owed else []
        if name in here:
            parts.append((sent.index.coords(name).to(here[name].device), here[name].reshape(-1)))
        at[name], order = torch.cat([at for at, _ in parts]).sort()
        value[name] = torch.cat([v.to(parts[-1][1]) for _, v in parts])[order]
    return Update(Coords({n: shapes[n] for n in at}, at), value, sent.weight)

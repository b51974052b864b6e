"""Random directions as a linear map: what is held are products with directions that both sides make from a seed.

Shapes: a parameter has d held coordinates and K directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.counter import key_of, normal, uniform, words
from partwise.core.index import Index, Joint, Shapes, Weight
from partwise.core.model import Params, Values
from partwise.core.update import Update

__all__ = ["Law", "Seeded", "by_coordinates", "second_moment"]

Law = Literal["normal", "truncated"]
_TOGETHER = 1 << 20  # coordinates of directions that are drawn at once


def second_moment(law: Law, size: int) -> float:
    """rho, the mean square of a coordinate of a direction of a parameter of `size` coordinates.

    Of the standard normal cut off at c = 1 / √size: 1 - 2 c φ(c) / (Φ(c) - Φ(-c)), which is about 1 / (3 size).

    Example:
        >>> round(10 * second_moment("truncated", 10), 5), round(1e4 * second_moment("truncated", 10_000), 7)
        (0.32891, 0.3333289)
    """
    if law == "normal":
        return 1.0
    c2 = 1.0 / max(1, size)
    # ∫ x² exp(-x²/2) over ∫ exp(-x²/2), both from 0 to c, as power series, which do not cancel.
    terms = range(40)
    above = sum((-c2 / 2) ** n / math.factorial(n) / (2 * n + 3) for n in terms)
    below = sum((-c2 / 2) ** n / math.factorial(n) / (2 * n + 1) for n in terms)
    return c2 * above / below


def _drawn(law: Law, size: int, keys: Tensor, positions: Tensor) -> Tensor:
    """Directions of a parameter of `size` coordinates, at some flat positions of it: (k,), (d,) -> (k, d) float32."""
    if law == "normal":
        return normal(keys.unsqueeze(1), positions)
    c = 1 / math.sqrt(max(1, size))
    reach = math.erf(c / math.sqrt(2))
    drawn = torch.erfinv((2 * uniform(keys.unsqueeze(1), positions) - 1) * reach) * math.sqrt(2)
    return drawn.clamp_(-c, c).to(torch.float32)


@register
@dataclass(frozen=True, eq=False)
class Seeded:
    """P x = ⟨v_k, x⟩ for each of K directions of each parameter; Pᵀ g = sum of g_k v_k.

    A direction is a function of seed, name, number and place in the whole parameter, so that that of a submodel is a
    part of that of the model, on every device. It is no set of coordinates: it has neither `coords` nor `put_`, and
    what counts coordinates sees in it what `base` covers.

    Args:
        base: what the directions lie in.
        seed: of the directions, in [0, 2**63).
        counts: name -> K, of each parameter of `base`.
        law: of a coordinate: `normal`, or `truncated`, the standard normal cut off at 1 / √d, d of the whole
            parameter.

    Source: Shu et al., "Ferret: federated full-parameter tuning at scale for large language models", ICML 2025,
        arXiv:2409.06277 (`truncated`); Zelikman et al., "Just one byte (per gradient)", 2023, arXiv:2306.10015.

    Example:
        >>> from partwise.core.index import Whole
        >>> index = Seeded(Whole({"w": (500,)}), 7, {"w": 3})
        >>> x, g = {"w": torch.arange(500.0)}, {"w": torch.tensor([1.0, -2.0, 0.5])}
        >>> back = {"w": torch.zeros(500)}
        >>> index.scatter_add_(back, g)
        >>> bool(torch.isclose((index.gather(x)["w"] * g["w"]).sum(), (x["w"] * back["w"]).sum(), rtol=1e-4))
        True
    """

    base: Index
    seed: int
    counts: Mapping[str, int]
    law: Law = "normal"

    def __post_init__(self) -> None:
        is_right = isinstance(self.base, Index) and 0 <= self.seed < 2**63 and self.law in get_args(Law)
        if not is_right or self.counts.keys() != self.base.shapes.keys() or min(self.counts.values(), default=1) < 1:
            raise ValueError(
                f"Seeded(seed={self.seed}, law={self.law!r}): needs an index, for each parameter of it a number of "
                f"directions of at least 1, a seed from 0 to 2**63 - 1 and one of {get_args(Law)}, got "
                f"{dict(self.counts)}. Name every parameter."
            )

    @property
    def shapes(self) -> Shapes:
        return self.base.shapes

    def _directions(self, name: str, which: Tensor) -> Iterator[Tensor]:
        """Some directions at the held coordinates, in their order, as many at a time as fit: (k, d), float64."""
        positions = self.base.coords(name)
        keys = words(key_of(self.seed, name), which)
        for some in keys.split(max(1, _TOGETHER // max(1, len(positions)))):
            yield _drawn(self.law, math.prod(self.shapes[name]), some, positions).double()

    def gather(self, params: Params) -> Values:
        found = {}
        for name, held in self.base.gather(params).items():
            flat = held.reshape(-1).cpu().double()
            every = torch.arange(self.counts[name])
            found[name] = torch.cat([v @ flat for v in self._directions(name, every)]).to(held)
        return found

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        for name in self.shapes:
            numbers = values[name].double().cpu() * scale
            which = numbers.nonzero().reshape(-1)  # what is multiplied by 0 need not be drawn
            total = torch.zeros(math.prod(self.base.held_shape(name)), dtype=torch.float64)
            drawn = (v for several in self._directions(name, which) for v in several)
            for v, number in zip(drawn, numbers[which].tolist(), strict=True):
                total += v * number  # one by one, product first: the same bits wherever it is done
            if self.base.grain(name):
                target[name].view(-1).index_add_(0, self.base.coords(name), total.to(target[name]))
            else:
                target[name].add_(total.reshape(target[name].shape).to(target[name]))

    def cover_(self, target: Params, weight: Weight) -> None:
        if isinstance(weight, Mapping):
            raise ValueError(
                "Seeded(): has one weight for all it touches, got weights by row. Use weights by examples."
            )
        self.base.cover_(target, weight)

    def grain(self, name: str) -> int:
        return self.base.grain(name)

    def held_shape(self, name: str) -> tuple[int, ...]:
        return (self.counts[name],)

    def coords(self, name: str) -> Tensor:
        raise ValueError(
            f"Seeded(): holds no single coordinates, got a question for those of {name!r}. Ask `base`, or use an index "
            "of coordinates."
        )

    def put_(self, target: Params, values: Params) -> None:
        raise ValueError("Seeded(): cannot be written to, got values: products do not say of what. Use `scatter_add_`.")


def by_coordinates(update: Update, params: Params) -> Update:
    """The update with what it says along directions written out at the coordinates these lie in; others as they are.

    Whoever looks at coordinates would take products for values.

    Args:
        update: of any index.
        params: shapes, types and devices of what is written out.
    """
    base = _base_of(update.index)
    if base is update.index:
        return update
    full = {name: torch.zeros_like(params[name]) for name in update.index.shapes}
    update.index.scatter_add_(full, update.values())
    return Update(base, base.gather(full), update.weight)


def _base_of(index: Index) -> Index:
    """What an index covers: the same object where there are no directions in it."""
    if isinstance(index, Seeded):
        return _base_of(index.base)
    if not isinstance(index, Joint):
        return index
    bases = tuple(map(_base_of, index.members))
    is_same = all(base is member for base, member in zip(bases, index.members, strict=True))
    return index if is_same else Joint(bases)

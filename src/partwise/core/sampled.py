"""A share of the coordinates of another index, drawn at random: sent as a seed, not as positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from partwise.core.codec import register
from partwise.core.counter import is_drawn, key_of
from partwise.core.index import Coords, Index, Rows, Shapes, Weight
from partwise.core.model import Params, Values

__all__ = ["Sampled"]


@register
@dataclass(frozen=True, eq=False)
class Sampled:
    """Each coordinate of `base` with the same chance, by its place in the whole model.

    So what two clients with different submodels draw from one seed is the same where they hold the same.

    Args:
        base: what it is drawn from.
        seed: of the draw, in [0, 2**63).
        share: the chance, in (0, 1].
        block: coordinates, one after another in the whole parameter, that are drawn together.
        by_row: draw rows of axis 0 instead, and blocks of rows; what is drawn of whole rows is held by rows.

    Example:
        >>> import torch
        >>> from partwise.core.index import Rows, Whole
        >>> all_of, rows = {"E": (40, 5)}, {"E": torch.tensor([3, 30])}
        >>> drawn = Sampled(Whole(all_of), 7, 0.5).coords("E")
        >>> in_rows = drawn[torch.isin(drawn // 5, rows["E"])]
        >>> torch.equal(in_rows, Sampled(Rows(all_of, rows), 7, 0.5).coords("E"))
        True
    """

    base: Index
    seed: int
    share: float
    block: int = 1
    by_row: bool = False
    _found: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        is_index = isinstance(self.base, Index) and not isinstance(self.base, Sampled)
        if not is_index or not 0 <= self.seed < 2**63 or not 0 < self.share <= 1 or self.block < 1:
            raise ValueError(
                f"Sampled(seed={self.seed}, share={self.share}, block={self.block}): needs an index that is not drawn "
                "itself, a seed from 0 to 2**63 - 1, a share in (0, 1] and a block of at least 1, got others. "
                "Use what RandomK makes."
            )

    @property
    def shapes(self) -> Shapes:
        return self.base.shapes

    def places(self, name: str) -> Tensor:
        """Which of the values that `base` gathers are drawn: positions among them, ascending."""
        together = self.block * (max(1, prod(self.shapes[name][1:])) if self.by_row else 1)
        return is_drawn(key_of(self.seed, name), self.base.coords(name) // together, self.share).nonzero().reshape(-1)

    def coords(self, name: str) -> Tensor:
        if name not in self._found:
            self._found[name] = self.base.coords(name)[self.places(name)]
        return self._found[name]

    def _plain(self, name: str) -> Coords | Rows:
        shapes = {name: self.shapes[name]}
        if self.grain(name) < len(self.shapes[name]):
            width = prod(self.shapes[name][1:])
            return Rows(shapes, {name: self.coords(name)[::width] // width})
        return Coords(shapes, {name: self.coords(name)})

    def gather(self, params: Params) -> Values:
        return {name: self._plain(name).gather(params)[name] for name in self.shapes}

    def scatter_add_(self, target: Params, values: Params, scale: float = 1.0) -> None:
        for name in self.shapes:
            self._plain(name).scatter_add_(target, values, scale)

    def put_(self, target: Params, values: Params) -> None:
        for name in self.shapes:
            self._plain(name).put_(target, values)

    def cover_(self, target: Params, weight: Weight) -> None:
        for name in self.shapes:
            self._plain(name).cover_(target, weight)

    def grain(self, name: str) -> int:
        shape = tuple(self.shapes[name])
        return 1 if self.by_row and self.base.grain(name) <= 1 and prod(shape) > 0 else max(1, len(shape))

    def held_shape(self, name: str) -> tuple[int, ...]:
        shape, count = tuple(self.shapes[name]), len(self.coords(name))
        return (count // prod(shape[1:]), *shape[1:]) if self.grain(name) < len(shape) else (count,)

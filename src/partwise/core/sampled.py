"""A share of the coordinates of another index, drawn at random: sent as a seed, not as positions."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from partwise.core.codec import register
from partwise.core.counter import is_drawn, key_of
from partwise.core.index import Coords, Index, Shapes, Weight
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
        return is_drawn(key_of(self.seed, name), self.base.coords(name) // self.block, self.share).nonzero().reshape(-1)

    def coords(self, name: str) -> Tensor:
        if name not in self._found:
            self._found[name] = self.base.coords(name)[self.places(name)]
        return self._found[name]

    def _plain(self, name: str) -> Coords:
        return Coords({name: self.shapes[name]}, {name: self.coords(name)})

    def gather(self, params: Params) -> Values:
        return {name: params[name].reshape(-1)[self.coords(name).to(params[name].device)] for name in self.shapes}

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
        return max(1, len(self.shapes[name]))

    def held_shape(self, name: str) -> tuple[int, ...]:
        return (len(self.coords(name)),)

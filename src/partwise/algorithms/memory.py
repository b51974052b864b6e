"""What a client remembers that must agree with the server's, and the mean over everybody of what is remembered.

Notation: N clients, h_m of them hold coordinate m; C is the cohort, whose update i has value v_i and weight w_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from partwise.core.aggregate import Sum
from partwise.core.algorithm import Task
from partwise.core.codec import register
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide_type

__all__ = ["NOTHING", "PopulationMean", "Remembered", "add_exactly_", "blank", "sums_of"]

NOTHING = Update(Whole({}), {}, 0.0)  # for a stream to which a reply adds nothing


@register
class Remembered(NamedTuple):
    """What a client remembers: a control variate, its last gradients, its anchor.

    Args:
        where: the coordinates it covers.
        value: of the held shapes, as far as the server is known to have it.
        pending: task -> the change sent in its reply, until that reply is known to be committed.
        asked: task -> the version at which it was asked, of these.
    """

    where: Index
    value: Values
    pending: dict[int, Values]
    asked: Mapping[int, int] = {}

    def settled(self, task: Task) -> Remembered:
        """With every change added whose reply the task says was committed.

        A scheduler commits a client's replies in the order of its tasks, or never: what is older is forgotten.
        """
        value, last = self.value, max(task.committed, default=-1)
        for id in sorted(self.pending.keys() & task.committed):
            value = {name: t + self.pending[id][name] for name, t in value.items()}
        return self._replace(value=value, pending={id: change for id, change in self.pending.items() if id > last})

    def placed(self, index: Index, server: Params) -> Remembered:
        """On what is held now: unchanged where it was held before, zero elsewhere.

        Args:
            index: what is held.
            server: values of the held types and devices.
        """
        if _is_same(self.where, index):
            return self

        def moved(values: Values) -> Values:
            dense = {
                n: torch.zeros(shape, dtype=server[n].dtype, device=server[n].device) for n, shape in shapes.items()
            }
            if values:
                self.where.scatter_add_(dense, values)
            return index.gather(dense)

        shapes = {**self.where.shapes, **index.shapes}
        pending = {id: moved(change) for id, change in self.pending.items()}
        return Remembered(index, moved(self.value), pending, self.asked)

    def sent(self, task: Task, change: Values) -> Remembered:
        """With one more change on its way.

        Those of four versions at most, so that a client whose replies are never committed does not fill its memory. One
        that is quick may have any number of them in a commit, all of one version.
        """
        asked = {**dict.fromkeys(self.pending, task.version), **self.asked, task.id: task.version}
        pending = {**self.pending, task.id: change}
        versions = sorted({asked[id] for id in pending})[-4:]
        kept = [id for id in sorted(pending) if asked[id] in versions]
        return self._replace(pending={id: pending[id] for id in kept}, asked={id: asked[id] for id in kept})


def sums_of(mean: Params) -> Values:
    """Where the changes of a mean in half precision are added up, in single precision; nothing for other types.

    A mean over many clients moves by little in each round: in bfloat16, a 500th added to 1 is lost, however often.
    """
    return {n: torch.zeros_like(t, dtype=torch.float32) for n, t in mean.items() if wide_type(t.dtype) != t.dtype}


def add_exactly_(mean: Values, sums: Values, total: Update) -> None:
    """Add a change to the mean, through its sums where it has some."""
    into = {**mean, **sums}
    total.index.scatter_add_(into, {n: v.to(into[n].dtype) for n, v in total.values().items()})
    for name in sums.keys() & total.index.shapes.keys():
        mean[name].copy_(sums[name])


def blank() -> Remembered:
    """Nothing remembered; the first task says what is held."""
    return Remembered(Whole({}), {}, {})


def _is_same(one: Index, other: Index) -> bool:
    if one.shapes != other.shapes:
        return False
    if isinstance(one, Whole) and isinstance(other, Whole):
        return True
    return all(torch.equal(one.coords(name), other.coords(name)) for name in one.shapes)


@dataclass(frozen=True)
class PopulationMean:
    """The mean over all holders when only the cohort's values are not zero.

    (1 / h_m) sum of w_i v_i over C, with weights of 0 or 1; h_m is N where everybody holds everything.

    Args:
        by_heat: count the holders of each coordinate; False: all clients hold everything.
    """

    by_heat: bool = False
    needs: ClassVar[Literal["sum", "each"]] = "sum"

    def init(self, params: Params, census: Census) -> Any:
        return census.num_clients, dict(census.counts.heat) if self.by_heat else {}

    def reduce(
        self, got: Sum | Sequence[Update], state: Any, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, Any]:
        assert isinstance(got, Sum)
        if got.scale != 1:
            raise CompositionError(
                f"{self!r}: adds up what clients remember having sent, got updates that a scheduler has scaled by "
                f"{got.scale:.3g}. Use a scheduler without staleness weights."
            )
        num_clients, heat = state
        if not heat:
            return Update(got.index, {n: t / num_clients for n, t in got.value.items()}, got.total), state
        shapes = got.index.shapes
        holders = got.index.gather({name: heat[name].expand(shape) for name, shape in shapes.items()})
        value = {n: t / holders[n].clamp(min=1).to(t) for n, t in got.value.items()}
        return Update(got.index, value, got.total), state

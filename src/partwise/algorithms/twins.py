"""A second model that is trained beside the held one, on the same batches: MC-PSGD's chain, FedAMD's last iterate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partwise.core.model import Model, Params, Values
from partwise.core.plan import GradientTerm, LocalOptimizer
from partwise.core.population import Batch
from partwise.core.rng import Rng
from partwise.local import SGD

__all__ = ["Apart", "Paired", "Twins", "firsts", "second", "second_names", "seconds"]

_PREFIX = "second/"  # no module's name has a slash: it would be no attribute


def second(values: Params) -> Values:
    """The values under the names of the second model: what a plan trains as `extra`."""
    return {_PREFIX + name: t for name, t in values.items()}


def second_names(names: Iterable[str]) -> frozenset[str]:
    """The names of the second model's values."""
    return frozenset(_PREFIX + name for name in names)


def firsts(values: Mapping[str, Tensor]) -> Values:
    """What is not the second model's."""
    return {name: t for name, t in values.items() if not name.startswith(_PREFIX)}


def seconds(values: Mapping[str, Tensor]) -> Values:
    """What is the second model's, under the names of the first."""
    return {name.removeprefix(_PREFIX): t for name, t in values.items() if name.startswith(_PREFIX)}


@dataclass(frozen=True, eq=False)
class Twins:
    """The mean losses of two models on one batch, added.

    What only the first model has, such as parameters that stay on a client, is lent to the second and gets no
    gradient from it.

    Args:
        model: whose losses.
    """

    model: Model = field(repr=False)

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        mine, own = firsts(params), seconds(params)
        moving = self.model.buffers()
        lent = {n: p.detach().clone() if n in moving else p.detach() for n, p in mine.items() if n not in own}
        chance = torch.default_generator.get_state()
        loss = self.model.losses(mine, self.model.spared(batch)).mean()
        torch.default_generator.set_state(chance)  # so that dropout, on a CPU, is the same for both
        return loss + self.model.losses({**lent, **own}, batch).mean()


@dataclass(frozen=True)
class Paired:
    """A local optimiser for each of two models.

    Args:
        first: of the held parameters.
        second: of the second model.
    """

    first: LocalOptimizer = field(default_factory=SGD)
    second: LocalOptimizer = field(default_factory=SGD)

    @property
    def lr(self) -> float:
        return self.first.lr

    def init(self, params: Params) -> Any:
        return self.first.init(firsts(params)), self.second.init(_those(params))

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        one = self.first.step_(firsts(params), firsts(grads), state[0])
        return one, self.second.step_(_those(params), _those(grads), state[1])


@dataclass(frozen=True, eq=False)
class Apart:
    """A change of the gradient, for the held parameters and the second model apart.

    Args:
        term: the change.
    """

    term: GradientTerm

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        one = self.term(firsts(params), firsts(grads), step)
        return {**one, **self.term(_those(params), _those(grads), step)}


def _those(values: Mapping[str, Tensor]) -> Values:
    return {name: t for name, t in values.items() if name.startswith(_PREFIX)}

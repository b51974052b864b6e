"""AdaGrad with local steps: denominators stand still between two exchanges, and squares are averaged like parameters.

Notation: B² is the denominator that all have in common, A² is B² and the client's own squares since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.errors import CompositionError
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import GradientTerm, LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.update import Update, wide
from partwise.local import SGD, LocalTraining

__all__ = ["AdaAlter", "FrozenAdaGrad"]

_SQUARES = "squares of "


@dataclass(frozen=True)
class FrozenAdaGrad:
    """Step t' since the last exchange: x <- x - lr g / √(B² + t' eps²);  A² <- A² + g².

    What is added to A² is kept beside the parameters, under names of its own.

    Args:
        lr: local learning rate, > 0.
        eps: stands for a step's square that is not in B² yet, > 0.
        placeholder: without it, t' is always 1, as in the released code.
        squares: name -> B², of the held shape.
    """

    lr: float
    eps: float
    placeholder: bool = True
    squares: Values = field(default_factory=dict, repr=False, compare=False)

    def init(self, params: Params) -> Any:
        alone = sorted(name for name in params if not name.startswith(_SQUARES) and name not in self.squares)
        if alone:
            raise CompositionError(
                f"AdaAlter(): divides by squares that all clients have in common, got {alone[:3]}, which stay on this "
                "one. Use FedAvg inside LocalOnly."
            )
        return 0

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        count = state + 1
        for name in [n for n in grads if not n.startswith(_SQUARES)]:
            waiting = count if self.placeholder else 1
            root = (self.squares[name] + waiting * self.eps**2).sqrt()
            params[name].sub_(grads[name] / root, alpha=self.lr)
            params[_SQUARES + name].add_(wide(grads[name]) ** 2)
        return count


@dataclass(frozen=True, eq=False)
class _Alone:
    """A change of the gradient that does not see the squares beside the parameters.

    Args:
        term: the change.
    """

    term: GradientTerm

    def __call__(self, params: Params, grads: Values, step: int) -> Values:
        own = {name: grad for name, grad in grads.items() if not name.startswith(_SQUARES)}
        return {**grads, **self.term({name: params[name] for name in own}, own, step)}


@dataclass(frozen=True)
class AdaAlter(Algorithm):
    """Local AdaAlter: as many steps as `local` says, each divided by the frozen B²; then x and A² are averaged.

    With one step it is AdaAlter, AdaGrad that accumulates after its update. Averages are over the holders of each
    coordinate, and what nobody holds stays as it is.

    Args:
        local: how a client trains; of its optimiser only the learning rate counts, and a decay that `clip_decay`
            makes a part of the gradient.
        eps: > 0.
        begin: b_0: B² begins as its square, > 0.
        placeholder: as in `FrozenAdaGrad`.
        submodel: clients hold only the table rows that their data touch; t' counts all steps, not those that touch a
            row.

    Source: Xie et al., "Local AdaAlter: communication-efficient stochastic gradient descent with adaptive learning
        rates", 2019, arXiv:1911.09030, algorithm 3.
    """

    local: LocalTraining = field(default_factory=lambda: LocalTraining(SGD(lr=0.5), steps=4))
    eps: float = 1.0
    begin: float = 1.0
    placeholder: bool = True
    submodel: bool = False

    def __post_init__(self) -> None:
        for name in ("eps", "begin"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                rule = "must be above 0" if value <= 0 else "must be a finite number above 0"
                raise ValueError(f"AdaAlter({name}={value}): {rule}, got {value}. 1 is usual.")

    def init(self, params: Params, census: Census) -> ServerState:
        squares = {name: torch.full_like(wide(t), self.begin**2) for name, t in params.items()}
        return {"model": {name: t.clone() for name, t in params.items()}, "squares": squares}

    @property
    def needs_all(self) -> bool:
        return True  # the squares that divide are those that all clients have in common

    @property
    def holds_alike(self) -> bool:
        return not self.submodel

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return site.touched() if self.submodel else site.whole()

    def weight(self, site: Site) -> float:
        return 1.0

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        plan = self.local.plan(site, task)
        rule = FrozenAdaGrad(plan.optimizer.lr, self.eps, self.placeholder, held["squares"])
        extra = {_SQUARES + name: torch.zeros_like(wide(t)) for name, t in held["model"].items()}
        return replace(plan, optimizer=rule, gradient=tuple(_Alone(term) for term in plan.gradient), extra=extra)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        change = {name: trained.change[name] for name in held["model"]}
        squares = {name: trained.change[_SQUARES + name] for name in held["model"]}
        return {"model": Update(index, change), "squares": Update(index, squares)}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("holders"), "squares": Mean("holders")}

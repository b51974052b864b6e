"""FedAMD: some clients of a round tell their gradients, the others take steps that all clients' gradients guide.

Notation: N clients, A of them in a round; client i's gradient is v_i, and v the mean of the last known ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Literal, get_args

import torch

from partwise.algorithms.memory import NOTHING, PopulationMean, blank
from partwise.algorithms.twins import Twins, firsts, second, second_names, seconds
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.checks import at_least
from partwise.core.errors import CompositionError
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, ModelLoss, Trained
from partwise.core.population import Census
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining

__all__ = ["Among", "FedAMD", "Recursive"]

Roles = Literal["chance", "period", "group"]
# An anchor's one step. A power of two, so that nothing is rounded by it, and large, so that the parameters that the
# step is added to do not take the gradient's last digits.
_STEP = 1024.0


@dataclass(frozen=True, eq=False)
class Recursive:
    """v <- v - lr h, with h a sum of differences of gradients, each on one batch.

    h <- h + (gradient here) - (gradient at the last iterate).

    The last iterate is the second model, which follows one step behind. What has no second copy takes plain steps.

    Args:
        lr: local learning rate, > 0.
        guide: name -> h before the first step.

    Source: Nguyen et al., "SARAH: a novel method for machine learning problems using stochastic recursive gradient",
        ICML 2017, arXiv:1703.00102.
    """

    lr: float
    guide: Params = field(repr=False)

    def init(self, params: Params) -> Any:
        return {name: self.guide[name].clone() for name in seconds(params)}

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        before, last = seconds(grads), seconds(params)
        for name, grad in firsts(grads).items():
            if name in before:
                grad = state[name].add_(grad).sub_(before[name])
                last[name].copy_(params[name])
            params[name].sub_(grad, alpha=self.lr)
        return state


@dataclass(frozen=True)
class Among:
    """Whether a name is one of these."""

    names: Collection[str]

    def __call__(self, name: str) -> bool:
        return name in self.names


@dataclass(frozen=True)
class FedAMD(Algorithm):
    """Clients are anchors, who tell their gradients, or miners, whom these guide.

    Anchor: v_i <- grad f_i(w). Miner: y <- y - lr h from y = w and h = v, with
    h <- h + grad f_i(y; batch) - grad f_i(last y; batch). Then w <- w + mean over miners of (y_i - w), and
    v <- v + (1/N) sum over anchors of the change of v_i: it guides the next round. With no miner w stays, bit for bit.

    v_i stays with its client, which sends its changes in stream `anchors`. A client that has never been an anchor
    counts as a gradient of 0, so the first round should ask everybody. As a submodel method both means are over the
    clients that hold a coordinate. For a server learning rate, give stream `model` a server chain.

    Args:
        local: how a miner trains; plain SGD without weight decay and gradient bound. A step costs two gradients.
        anchor_prob: probability of being an anchor, in [0, 1]; `closed_form` gives the one of the released code.
        roles: who decides: `chance`, each client for itself; `period`: all are anchors at every `period`-th version
            and miners otherwise; `group`: the scheduler, which asks anchors with group 1.
        period: of `period`, >= 1.
        warm_up: whoever is asked at version 0 is an anchor.
        large_batch: examples of an anchor's gradient; 0 for all it has.
        submodel: clients hold only the table rows that their data touch.

    Source: Wu et al., "Anchor sampling for federated learning with partial client participation", ICML 2023,
        arXiv:2206.05891; code: HarliWu/FedAMD.
    Differs: the server keeps v only, and a change of v_i counts once its reply is committed, so that v = mean of v_i
        holds when replies are lost; the submodel form is ours.

    Example:
        >>> round(FedAMD.closed_form(num_clients=100, cohort=20), 3)
        0.488
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    anchor_prob: float = 0.2
    roles: Roles = "chance"
    period: int = 5
    warm_up: bool = True
    large_batch: int = 0
    submodel: bool = False

    def __post_init__(self) -> None:
        if self.roles not in get_args(Roles):
            raise ValueError(
                f"FedAMD(roles={self.roles!r}): must be one of {', '.join(get_args(Roles))}, got {self.roles!r}. "
                "'chance' is usual."
            )
        if not 0 <= self.anchor_prob <= 1:
            raise ValueError(
                f"FedAMD(anchor_prob={self.anchor_prob}): must lie in [0, 1], got {self.anchor_prob}. 0.2 is usual."
            )
        at_least(self, period=1, large_batch=0)
        rule = self.local.optimizer
        if not isinstance(rule, SGD) or rule.momentum or rule.weight_decay or self.local.max_norm:
            raise CompositionError(
                "FedAMD(): a miner's direction is a sum of gradients, which needs plain SGD without weight decay and "
                f"gradient bound, got {self.local!r}. Use LocalTraining(SGD(lr))."
            )

    @staticmethod
    def closed_form(num_clients: int, cohort: int, *, each: bool = False) -> float:
        """The released code's probability: sqrt(4 (N/A)² + 2 N/A) - 2 N/A.

        Args:
            num_clients: N.
            cohort: A.
            each: the alternative for a probability per client, (2 / (A + 2))^(1/A).
        """
        if not 1 <= cohort <= num_clients:
            raise ValueError(
                f"FedAMD.closed_form(cohort={cohort}): must lie in 1..{num_clients}, got {cohort}. "
                "Give population and cohort."
            )
        ratio = num_clients / cohort
        return float((2 / (cohort + 2)) ** (1 / cohort)) if each else sqrt(4 * ratio**2 + 2 * ratio) - 2 * ratio

    def is_anchor(self, task: Task, site: Site) -> bool:
        """What a client is in one task."""
        if self.warm_up and task.version == 0:
            return True
        if self.roles == "chance":
            return site.derive("anchor", task) < self.anchor_prob * 2.0**63
        return task.group == 1 if self.roles == "group" else task.version % self.period == 0

    @property
    def reads_rate(self) -> bool:
        """An anchor's gradient is its step over the rate."""
        return True

    @property
    def needs_unscaled(self) -> bool:
        return True

    @property
    def sends_all(self) -> bool:
        return False  # anchors send their gradient and nothing of the model

    def init(self, params: Params, census: Census) -> ServerState:
        model = {name: t.clone() for name, t in params.items()}
        return {"model": model, "anchors": {name: torch.zeros_like(t) for name, t in params.items()}}

    def client_init(self, site: Site) -> ClientState:
        return blank()

    @property
    def holds_alike(self) -> bool:
        return not self.submodel

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return site.touched() if self.submodel else site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": index} if self.is_anchor(task, site) else {"model": index, "anchors": index}

    def weight(self, site: Site) -> float:
        return 1.0

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        moving = site.model.buffers()
        if self.is_anchor(task, site):
            return LocalPlan(
                ModelLoss(site.model),
                SGD(_STEP),
                self.large_batch,
                steps=1,
                buffers=moving,
                trainable=Among(frozenset(index.shapes)),  # what stays on the client is for miners to train
            )
        rule = self.local.optimizer_at(task.version)
        return LocalPlan(
            Twins(site.model),
            Recursive(rule.lr, held["anchors"]),
            self.local.batch_size,
            steps=task.steps or self.local.steps,
            epochs=self.local.epochs,
            buffers=moving | second_names(moving),
            extra=second(held["model"]),
        )

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        own = own.settled(task)
        value = {name: trained.change[name] for name in held["model"]}
        if not self.is_anchor(task, site):
            return {"model": Update(index, value), "anchors": NOTHING}, own
        own = own.placed(index, held["model"])
        change = {name: v.div(-_STEP) - own.value[name] for name, v in value.items()}
        for name in site.model.buffers() & change.keys():
            change[name] = torch.zeros_like(change[name])  # moved by the forward pass, not by gradients
        return {"model": NOTHING, "anchors": Update(index, change)}, own.sent(task, change)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("holders" if self.submodel else "cohort"), "anchors": PopulationMean(self.submodel)}

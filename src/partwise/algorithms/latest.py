"""FedLaAvg: every round averages the latest known gradients of all clients, present or not.

Notation: N clients, h_m of them hold coordinate m, client i has n_i of all n examples; gamma is the local
learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from partwise.algorithms.memory import PopulationMean, add_exactly_, blank, sums_of
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.errors import CompositionError
from partwise.core.index import Index, Whole
from partwise.core.latest import Latest
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining, Times

__all__ = ["FedLaAvg"]

Keeper = Literal["client", "server"]
Loss = Literal["samples", "uniform"]
_EXAMPLES = Whole({"examples": ()})


@dataclass(frozen=True)
class FedLaAvg(Algorithm):
    """Averages the latest gradient of every client, however long ago it was sent.

    u_i = (w - w_i) / gamma;  g <- g + (1/N) sum over C of (u_i - G_i);  G_i <- u_i;  w <- w - gamma g.
    So g = (1/N) sum over all clients of G_i, and a client that has never answered counts as a gradient of 0. As a
    submodel method the sums are over the rows that the clients' data touch, with 1 / h_m for 1 / N.

    A client sends one update, in stream `gradient`, and nothing in stream `model`.

    Args:
        local: how a client trains; plain SGD, of which the gradients' sum can be read off. Where the rate decays, old
            sums are multiplied by the new one.
        memory: who keeps G_i. `client`: the client, which sends u_i - G_i, so that the server needs no more than the
            sum. `server`: the aggregator `Latest`, N updates of d numbers each; clients keep nothing.
        weights: `samples`: client i's loss is multiplied by N n_i / n, so its steps are longer the more examples it
            has; `uniform`: by 1.
        submodel: clients hold only the table rows that their data touch.
        num_non_update_rounds: so many versions at first only collect gradients, and leave w where it is.

    Source: Yan et al., "Distributed non-convex optimization with sublinear speedup under intermittent client
        availability", INFORMS Journal on Computing 2023, arXiv:2002.07399; code: mikudehuane/FedLaAvg.
    Differs: G_i counts once the reply is committed, so that g = mean of G_i holds when replies are lost or late: of
        two replies that were both sent before the first was known to be committed, both differences are added. That
        holds as long as nothing changes updates on the way: no lossy client chain, no staleness weights. Models with
        running statistics are refused, which have no gradient. The submodel form is ours.

    Example:
        >>> from partwise.schedulers import Synchronous
        >>> every_round = FedLaAvg(LocalTraining(SGD(0.05), steps=10)), Synchronous(cohort=20)
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    memory: Keeper = "client"
    weights: Loss = "samples"
    submodel: bool = False
    num_non_update_rounds: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("memory", get_args(Keeper)), ("weights", get_args(Loss))):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"FedLaAvg({name}={value!r}): must be one of {', '.join(allowed)}, got {value!r}. "
                    f"{allowed[0]!r} is usual."
                )
        if self.num_non_update_rounds < 0:
            value = self.num_non_update_rounds
            raise ValueError(f"FedLaAvg(num_non_update_rounds={value}): must be at least 0, got {value}. 0 is usual.")
        rule = self.local.optimizer
        if not isinstance(rule, SGD) or rule.momentum or (rule.cautious and rule.weight_decay):
            raise CompositionError(
                f"FedLaAvg(): reads the sum of gradients off the steps, which needs plain SGD, got {rule!r}. "
                "Use SGD without momentum and cautious decay."
            )

    @property
    def reads_rate(self) -> bool:
        """The sum of gradients is the step over the rate."""
        return True

    @property
    def needs_unscaled(self) -> bool:
        return True

    def init(self, params: Params, census: Census) -> ServerState:
        model = {name: t.clone() for name, t in params.items()}
        state = {"model": model, "gradient": {name: torch.zeros_like(t) for name, t in params.items()}}
        mean = census.counts.total_weight / census.num_clients if self.weights == "samples" else 1.0
        state["scale"] = {"examples": torch.tensor(mean, dtype=torch.float64)}  # n / N
        state["rounds"] = {"done": torch.tensor(0.0, dtype=torch.float64)}
        sums = sums_of(params) if self.memory == "client" else {}
        return {**state, "sums": sums} if sums else state

    def client_init(self, site: Site) -> ClientState:
        return blank() if self.memory == "client" else None

    @property
    def holds_alike(self) -> bool:
        return not self.submodel

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return site.touched() if self.submodel else site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": index, "scale": _EXAMPLES} if self.weights == "samples" else {"model": index}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        moving = sorted(site.model.buffers() & index.shapes.keys())
        if moving:
            raise CompositionError(
                f"FedLaAvg(): remembers gradients, which running statistics do not have, got {moving[:3]}. "
                "Keep normalization on the clients: LocalOnly(FedLaAvg(...))."
            )
        if self.weights == "uniform":
            return self.local.plan(site, task)
        scale = Times(len(site.data) / held["scale"]["examples"])
        return self.local.plan(site, task, gradient=(scale,))

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        lr = self.local.optimizer_at(task.version).lr
        total = {name: trained.change[name].div(-lr) for name in held["model"]}
        if self.memory == "server":
            return {"gradient": Update(index, total)}, None
        own = own.settled(task).placed(index, held["model"])
        change = {name: u - own.value[name] for name, u in total.items()}
        return {"gradient": Update(index, change)}, own.sent(task, change)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"gradient": PopulationMean(self.submodel) if self.memory == "client" else Latest(self.submodel)}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        gradient, total = state["gradient"], totals["gradient"]
        if self.memory == "server":  # the mean itself, not what changes it
            torch._foreach_zero_(list(gradient.values()))
        add_exactly_(gradient, state.get("sums", {}), total)
        done = int(state["rounds"]["done"])
        state["rounds"]["done"] += 1
        if done >= self.num_non_update_rounds:
            names, lr = list(gradient), self.local.optimizer_at(done).lr
            torch._foreach_add_([state["model"][n] for n in names], [gradient[n] for n in names], alpha=-lr)
        return state

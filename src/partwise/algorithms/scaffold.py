"""SCAFFOLD: control variates that take the drift out of local steps, for whole models and for submodels.

Notation: N clients, K in the cohort C, h_m clients hold coordinate m; client i has the control c_i, the server c.
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
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update
from partwise.local import SGD, LocalTraining, Shift

__all__ = ["Scaffold"]

Option = Literal["I", "II"]


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """Local steps corrected by the difference between the server's control and the client's.

    v <- v - lr (grad f_i(v) - c_i + c);  w <- w + (1/K) sum of (v_i - w);  c <- c + (1/N) sum of (c_i' - c_i).
    As a submodel method, each sum is over the rows that the clients' data touch, with N / (K h_m) for 1/K and
    1 / h_m for 1/N.

    Args:
        local: how a client trains. Option II needs plain SGD.
        option: the new control: `II`, c_i - c + (w - v) / (sum of step sizes); `I`, grad f_i(w) over all the
            client's examples, one more pass.
        submodel: clients hold only the table rows that their data touch.

    Source: Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020,
        arXiv:1910.06378, algorithm 1.
    Differs: a change of c_i counts once its reply is committed, so that c = mean of c_i holds when replies are lost;
        running means and other buffers have no control; the submodel form is ours.
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    option: Option = "II"
    submodel: bool = False

    def __post_init__(self) -> None:
        if self.option not in get_args(Option):
            raise ValueError(
                f"Scaffold(option={self.option!r}): must be 'I' or 'II', got {self.option!r}. 'II' is usual."
            )
        rule = self.local.optimizer
        is_plain = isinstance(rule, SGD) and not rule.momentum and not (rule.cautious and rule.weight_decay)
        if self.option == "II" and not is_plain:
            raise CompositionError(
                f"Scaffold(option='II'): reads the mean gradient off the step, which needs plain SGD, got {rule!r}. "
                "Use SGD without momentum and cautious decay, or option='I'."
            )

    @property
    def reads_rate(self) -> bool:
        return self.option == "II"

    @property
    def needs_unscaled(self) -> bool:
        return True

    def init(self, params: Params, census: Census) -> ServerState:
        model = {name: t.clone() for name, t in params.items()}
        state = {"model": model, "control": {name: torch.zeros_like(t) for name, t in params.items()}}
        sums = sums_of(params)
        return {**state, "sums": sums} if sums else state

    def client_init(self, site: Site) -> ClientState:
        return blank()

    @property
    def holds_alike(self) -> bool:
        return not self.submodel

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return site.touched() if self.submodel else site.whole()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return {"model": index, "control": index}

    def weight(self, site: Site) -> float:
        return 1.0

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        control = own.settled(task).placed(index, held["control"]).value
        shift = {name: c - control[name] for name, c in held["control"].items()}
        return self.local.plan(site, task, gradient=(Shift(shift),))

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        start, server = held["model"], held["control"]
        own = own.settled(task).placed(index, server)
        value = {name: trained.change[name] for name in start}
        if self.option == "I":
            change = {n: g - own.value[n] for n, g in _gradient(start, index, task, site).items()}
        else:
            distance = trained.steps * self.local.optimizer_at(task.version).lr
            change = {n: v.div(-distance).sub_(server[n]) for n, v in value.items()}
        for name in site.model.buffers() & change.keys():
            change[name] = torch.zeros_like(change[name])  # moved by the forward pass, not by gradients
        updates = {"model": Update(index, value), "control": Update(index, change)}
        return updates, own.sent(task, change)

    def aggregators(self) -> Mapping[str, Aggregator]:
        mean = Mean("expected_holders" if self.submodel else "cohort")
        return {"model": mean, "control": PopulationMean(self.submodel)}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        totals["model"].index.scatter_add_(state["model"], totals["model"].values())
        add_exactly_(state["control"], state.get("sums", {}), totals["control"])
        return state


def _gradient(start: Values, index: Index, task: Task, site: Site) -> Values:
    """The gradient of the client's mean loss at the values it received."""
    data = site.localized(index)
    params = {name: t.clone() for name, t in start.items()}
    names = [name for name in params if name not in site.model.buffers()]
    leaves = [params[name].requires_grad_() for name in names]
    missing = [n for n, _ in site.model.build(site.seed).named_parameters() if n not in params]
    if missing:
        raise CompositionError(
            f"Scaffold(option='I'): takes the gradient of the whole model, but does not see {missing[:3]}. "
            "Use option='II' inside LocalOnly."
        )
    with torch.random.fork_rng(devices=[]):
        # Dropout layers know no generator but the global one.
        torch.default_generator.manual_seed(site.derive("control", task))
        loss = site.model.losses(params, data.batch(torch.arange(len(data)))).mean()
    found = dict(zip(names, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
    return {n: torch.zeros_like(t) if (g := found.get(n)) is None else g for n, t in start.items()}

"""An algorithm in a file outside the package: what a client sends does not grow with the number of its local steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import partwise as pw
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.index import Index
from partwise.core.model import Values
from partwise.core.plan import LocalPlan, Trained


@dataclass(frozen=True)
class PerStep(Algorithm):
    """Federated averaging of the change per local step, times `steps`; all that is not written is FedAvg's.

    Args:
        steps: how many steps everybody counts for, > 0.
        local: how a client trains.

    Source: Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization",
        NeurIPS 2020, arXiv:2007.07481: FedNova for plain SGD, with a fixed effective number of steps.
    """

    steps: float = 10.0
    local: pw.LocalTraining = field(default_factory=pw.LocalTraining)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, pw.Update], ClientState]:
        value = {name: change * (self.steps / trained.steps) for name, change in trained.change.items()}
        return {"model": pw.Update(index, value, self.weight(site))}, own

"""FedSubAvg: clients hold the rows their data touch, and cold rows are not averaged with absence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Values
from partwise.core.plan import LocalPlan
from partwise.local import LocalTraining

__all__ = ["Estimator", "FedSubAvg", "Weighting"]

Estimator = Literal["heat", "count", "capped", "fedavg"]
Weighting = Literal["uniform", "size_fixed", "size_ratio"]


@dataclass(frozen=True)
class FedSubAvg(Algorithm):
    """Each client holds, trains and sends the rows its data touch; the mean is taken per coordinate.

    Args:
        estimator: what the sum of updates of a coordinate is divided by, with K in the cohort, N clients, h_m
            holders in the population and k_m in the cohort: `heat` K h_m / N (unbiased for the holders' mean, and
            noisy for cold rows); `capped` the same but at least `cap` (biased for cold rows); `count` k_m (biased:
            cold rows skip rounds); `fedavg` K (absence counts as zero change).
        local: how a client trains.
        weighting: `uniform`; `size_fixed` weights by examples, exactly unbiased with `heat`; `size_ratio` the released
            code's form, which divides by the cohort's examples (only with `heat`).
        cap: lower bound of `capped`, > 0.

    Source: Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022,
        arXiv:2109.07704; code: sjtu-yc/federated-submodel-averaging.
    Differs: the paper's rule is `heat` with `uniform`; the released code is `heat` with `size_ratio`.
    """

    estimator: Estimator = "capped"
    local: LocalTraining = field(default_factory=LocalTraining)
    weighting: Weighting = "uniform"
    cap: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            choices = ", ".join(get_args(Estimator))
            raise ValueError(
                f"FedSubAvg(estimator={self.estimator!r}): must be one of {choices}. 'capped' is a safe choice."
            )
        if self.weighting not in get_args(Weighting):
            choices = ", ".join(get_args(Weighting))
            raise ValueError(
                f"FedSubAvg(weighting={self.weighting!r}): must be one of {choices}. 'uniform' is the paper's."
            )
        if self.weighting == "size_ratio" and self.estimator != "heat":
            raise ValueError(
                f"FedSubAvg(weighting='size_ratio'): is a form of the 'heat' estimator, got {self.estimator!r}. "
                "Use weighting='size_fixed'."
            )
        if not self.cap > 0:
            raise ValueError(f"FedSubAvg(cap={self.cap}): must be above 0, got {self.cap}. 1 is usual.")

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return site.touched()

    def weight(self, site: Site) -> float:
        return 1.0 if self.weighting == "uniform" else float(len(site.data))

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def aggregators(self) -> Mapping[str, Aggregator]:
        if self.weighting == "size_ratio":
            return {"model": Mean("ratio")}
        means = {
            "heat": Mean("expected_holders"),
            "capped": Mean("expected_holders", at_least=self.cap),
            "count": Mean("holders"),
            "fedavg": Mean("cohort"),
        }
        return {"model": means[self.estimator]}

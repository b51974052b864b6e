"""Federated averaging, and FedProx, which adds one term to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.index import Index
from partwise.core.limits import Limit
from partwise.core.mean import Mean
from partwise.core.model import Values
from partwise.core.plan import LocalPlan
from partwise.local import LocalTraining, Proximal

__all__ = ["FedAvg", "FedProx", "Weights"]

Weights = Literal["uniform", "samples", "unbiased"]


def weight_of(weights: Weights, site: Site) -> float:
    """What a client counts for under one of the three weightings."""
    return 1.0 if weights == "uniform" else float(len(site.data))


def mean_of(weights: Weights) -> Mean:
    """The mean that goes with a weighting."""
    return Mean("expected" if weights == "unbiased" else "cohort")


def check_weights(part: str, weights: str) -> None:
    """Refuse an unknown weighting."""
    if weights not in get_args(Weights):
        raise ValueError(
            f"{part}(weights={weights!r}): must be one of {', '.join(get_args(Weights))}. 'samples' is usual."
        )


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Every client trains the whole model; the server adds the weighted mean of the updates.

    w <- w + sum over C of p_i (w_i - w).

    Args:
        local: how a client trains.
        weights: p_i: `uniform` 1/K; `samples` n_i over the cohort's examples; `unbiased` (N/K) n_i / n, the only
            one whose expectation is the update under full participation.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
        AISTATS 2017, arXiv:1602.05629, algorithm 1.
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    weights: Weights = "samples"

    def __post_init__(self) -> None:
        check_weights("FedAvg", self.weights)

    def limit(self, stream: str) -> Limit:
        return Limit(weight=1.0) if self.weights == "uniform" else Limit()

    def weight(self, site: Site) -> float:
        return weight_of(self.weights, site)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": mean_of(self.weights)}


@dataclass(frozen=True)
class FedProx(Algorithm):
    """FedAvg with a pull of strength mu towards the values the client received.

    v <- v - lr (grad f_i(v) + mu (v - w)), over held coordinates only.

    Args:
        mu: strength of the pull, >= 0; 0 is FedAvg. Stable while lr (L + mu) < 2.
        local: how a client trains.
        weights: as in FedAvg.

    Source: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, arXiv:1812.06127.
    """

    mu: float = 0.01
    local: LocalTraining = field(default_factory=LocalTraining)
    weights: Weights = "samples"

    def __post_init__(self) -> None:
        check_weights("FedProx", self.weights)
        if not 0 <= self.mu < math.inf:
            rule = "must be at least 0" if self.mu < 0 else "must be a finite number, at least 0"
            raise ValueError(f"FedProx(mu={self.mu}): {rule}, got {self.mu}. 0 is FedAvg, 0.01 is usual.")

    def limit(self, stream: str) -> Limit:
        return Limit(weight=1.0) if self.weights == "uniform" else Limit()

    def weight(self, site: Site) -> float:
        return weight_of(self.weights, site)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        pull = (Proximal(self.mu, held["model"]),) if self.mu else ()
        return self.local.plan(site, task, gradient=pull)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": mean_of(self.weights)}

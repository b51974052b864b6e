"""Whole models tuned by a few numbers: first-order local steps, projected on directions that both sides make.

Notation: a parameter of d coordinates has K directions v_k, whose coordinates have the mean square rho.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from partwise.algorithms.averaging import Weights, check_weights, mean_of, weight_of
from partwise.algorithms.replica import Replica, advanced, asked, caught_up, check_versions, log_of
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, ServerState, Site, Task
from partwise.core.index import Index, Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Census
from partwise.core.rng import derive
from partwise.core.schedule import ReplyInfo
from partwise.core.seeded import Seeded, second_moment
from partwise.core.update import Update
from partwise.local import LocalTraining

__all__ = ["Ferret"]


@dataclass(frozen=True)
class Ferret(Algorithm):
    """gamma_k = ⟨v_k, w_i - w⟩ is sent, mean gamma_k comes back; w <- w + lr / (rho K) sum of (mean gamma_k) v_k.

    Directions are new in every version, and made from its number on both sides. The numbers are a stream of their own,
    `numbers`, which may be summed, under masks too: with `binds_model=False`, since clients are not given the model
    that their masks could be bound to. A client keeps its model and makes the steps that it missed; the model is
    fetched where too many were missed, and never sent. With fewer directions than coordinates the error is larger than
    the update, sqrt(d / K) times: `lr` must be the smaller.

    Args:
        directions: of the whole model; each parameter has its share by size, and two at least.
        lr: server learning rate, > 0.
        local: how a client trains.
        weights: as in FedAvg.
        scale: `unbiased` is the rule above; `release` divides by 3 rho K, as the released code does.
        keep: versions whose numbers the server keeps, >= 2.
        seed: of the directions.

    Source: Shu et al., "Ferret: federated full-parameter tuning at scale for large language models", ICML 2025,
        arXiv:2409.06277, algorithm 1.
    Differs: blocks are parameters; directions are shared out by size, not by each client's norms, so that all have the
        same and sums are linear; new directions in every version, not out of a pool with momentum.
    """

    directions: int = 1024
    lr: float = 1.0
    local: LocalTraining = field(default_factory=LocalTraining)
    weights: Weights = "samples"
    scale: Literal["unbiased", "release"] = "unbiased"
    keep: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_weights("Ferret", self.weights)
        if self.directions < 1 or self.keep < 2 or not self.lr > 0:
            raise ValueError(
                f"Ferret(directions={self.directions}, lr={self.lr}, keep={self.keep}): needs directions, a rate above "
                "0 and two versions to keep, got others. 1024 directions and 32 versions are usual."
            )
        if self.scale not in ("unbiased", "release"):
            raise ValueError(f"Ferret(scale={self.scale!r}): must be 'unbiased' or 'release'. Choose one.")

    @property
    def needs_fresh(self) -> bool:
        return True

    @property
    def mirrors(self) -> bool:
        return True

    @property
    def is_given_model(self) -> bool:
        return False

    def _index(self, params: Params, version: int) -> Seeded:
        size = sum(t.numel() for t in params.values())
        counts = {n: max(2, round(self.directions * t.numel() / size)) for n, t in params.items()}
        return Seeded(Whole(shapes_of(params)), derive(self.seed, "ferret", version), counts, "truncated")

    def _fields(self, params: Params) -> Values:
        """Name -> zeros, one per direction."""
        return {name: torch.zeros(count) for name, count in self._index(params, 0).counts.items()}

    def _step_(self, model: Values, version: int, numbers: Values) -> None:
        """From the model of `version` to the next."""
        index = self._index(model, version)
        times = 1.0 if self.scale == "unbiased" else 1 / 3
        factors = {
            n: self.lr * times / (second_moment("truncated", t.numel()) * index.counts[n]) for n, t in model.items()
        }
        index.scatter_add_(model, {name: numbers[name].double() * factor for name, factor in factors.items()})

    def init(self, params: Params, census: Census) -> ServerState:
        model, fields = {name: t.clone() for name, t in params.items()}, self._fields(params)
        return {"model": model, "numbers": fields, "log": log_of(fields, self.keep)}

    def client_init(self, site: Site) -> ClientState:
        return Replica()

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index]:
        return asked(own, task, self._fields(site.like), self.keep, site)

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        model, version = caught_up(held, own, task, site, keep=self.keep, step_=self._step_)
        return {"model": model, "at": {"version": torch.tensor([version])}}

    def weight(self, site: Site) -> float:
        return weight_of(self.weights, site)

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.local.plan(site, task)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        model, version = held["model"], int(held["at"]["version"])
        numbers = self._index(model, version).gather({name: trained.change[name] for name in model})
        numbers = {name: t.float() for name, t in numbers.items()}
        update = Update(Whole(shapes_of(numbers)), numbers, self.weight(site))
        return {"numbers": update}, Replica(version, dict(model))

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"numbers": mean_of(self.weights)}

    def commit(self, state: ServerState, totals: Mapping[str, Update], replies: Sequence[ReplyInfo]) -> ServerState:
        version = check_versions(self, state, replies)
        numbers = {name: torch.zeros_like(t) for name, t in state["numbers"].items()}
        totals["numbers"].index.scatter_add_(numbers, totals["numbers"].values())
        self._step_(state["model"], version, numbers)
        return {**state, "log": advanced(state["log"], numbers)}

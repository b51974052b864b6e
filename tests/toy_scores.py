"""A small run over a table of which clients hold some rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from partwise.algorithms import FedSubAvg
from partwise.core.metrics import AUC, Loss
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.population import Examples, Population, Profile
from partwise.core.update import Update, map_values
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.local import SGD, LocalTraining
from partwise.schedulers import Synchronous


class Scores(nn.Module):
    """The sum of the rows of two ids: a logistic regression over a table."""

    def __init__(self, rows: int = 12) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).squeeze(2).sum(1) + self.bias


@dataclass(frozen=True)
class Toy(Population):
    """Six clients; client c touches the rows c..c+5 and has 5 + 3 c examples."""

    highest_id: int = 10
    empty_client: int = -1
    bad_client: int = -1

    @property
    def clients(self) -> range:
        return range(6)

    def _make(self, client: int, purpose: int) -> Examples:
        n = 0 if client == self.empty_client else 5 + 3 * client
        rng = torch.Generator().manual_seed(100 * purpose + client)
        ids = torch.randint(client, min(client + 6, self.highest_id + 1), (n, 2), generator=rng)
        if self.highest_id > 11 and client == 3:
            ids[0, 0] = self.highest_id
        y = (torch.rand(n, generator=rng) < ids.double().mean(1) / 11).float()
        if client == self.bad_client:
            y = torch.full_like(y, math.nan)
        return Examples({"ids": ids, "y": y})

    def data(self, client: int) -> Examples:
        return self._make(client, 1)

    def test_data(self, client: int) -> Examples:
        return replace(self, empty_client=-1, bad_client=-1)._make(client, 2)

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile(seconds_per_step=0.1 * (1 + client), uplink=1000.0, downlink=4000.0)

    def name(self, client: int) -> str:
        return f"client number {client}"


def experiment(population: Toy | None = None, **changes: object) -> Experiment:
    model = Model(Scores, BinaryCrossEntropy(), inputs=("ids",), tables={"table.weight": ("ids",)})
    workload = Workload(model, population or Toy(), (AUC(), Loss(BinaryCrossEntropy())))
    plan = LocalTraining(SGD(lr=0.5), batch_size=4, steps=3)
    made = Experiment(workload, FedSubAvg("count", plan), Synchronous(cohort=3, rounds=4), name="toy", seed=3)
    return replace(made, **changes)


@dataclass(frozen=True)
class WrongShape:
    """Sends a row too few."""

    def init(self, params: object) -> tuple[()]:
        return ()

    def apply(self, update: Update, state: object, rng: object) -> tuple[Update, object]:
        return map_values(update, lambda v: v[:-1]), state

"""Modules whose parameters do not lie row by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg
from partwise.core.metrics import Loss
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.population import Examples, Population
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.schedulers import Synchronous
from partwise.transforms import RandomK, TopK


class Pictures(Population):
    """Three clients with small pictures."""

    clients = range(3)

    def data(self, client):
        draw = torch.Generator().manual_seed(client)
        return Examples({"x": torch.randn(8, 2, 5, 5, generator=draw), "y": torch.arange(8) % 2})

    test_data = data


def turned():
    """A module whose parameters lie with the channels last, and one that is a transpose."""
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0))
    body[3] = nn.Linear(36, 3)
    body[3].weight = nn.Parameter(torch.randn(36, 3).t())
    body.insert(4, nn.Linear(3, 1))
    return body.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("chain", [(), (TopK(k=9),), (RandomK(0.5),)], ids=["as it is", "top", "random"])
def test_a_module_of_any_strides_is_trained_and_kept(tmp_path, chain):
    workload = Workload(Model(turned, BinaryCrossEntropy()), Pictures(), (Loss(BinaryCrossEntropy()),))
    made = Experiment(workload, FedAvg(), Synchronous(cohort=3, rounds=2), client=chain)
    assert "0.weight" in made.run(tmp_path / "run").params

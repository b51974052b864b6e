from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.core.metrics import Accuracy, Loss
from partwise.core.model import CrossEntropy, Model
from partwise.core.workload import Workload
from partwise.populations.arrays import ArrayPopulation


def test_main_metric_is_the_first():
    model = Model(lambda: nn.Linear(2, 3), CrossEntropy())
    population = ArrayPopulation({"x": torch.zeros(2, 2)}, torch.tensor([0, 2]))
    assert Workload(model, population, (Accuracy(), Loss(model.loss))).main == Accuracy()


def test_workload_without_metrics():
    model = Model(lambda: nn.Linear(2, 3), CrossEntropy())
    population = ArrayPopulation({"x": torch.zeros(2, 2)}, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"needs at least one metric, got none\. Add Loss"):
        Workload(model, population, ())

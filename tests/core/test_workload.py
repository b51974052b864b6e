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


def test_metrics_of_one_name():
    """Of two targets, say: their hits would be counted as those of one metric, and a client's accuracy was above 1."""
    model = Model(lambda: nn.Linear(2, 3), CrossEntropy())
    population = ArrayPopulation({"x": torch.zeros(2, 2)}, torch.tensor([0, 2]))
    said = r"must have names that differ, got 2 called 'accuracy'\. Name them by what they measure"
    with pytest.raises(ValueError, match=said):
        Workload(model, population, (Accuracy("a"), Loss(model.loss), Accuracy("b")))
    both = (Accuracy("a"), Accuracy("b", name="accuracy_b"))
    assert [metric.name for metric in Workload(model, population, both).metrics] == ["accuracy", "accuracy_b"]

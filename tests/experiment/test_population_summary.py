from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.algorithms.averaging import FedAvg
from partwise.algorithms.personal import LocalOnly
from partwise.algorithms.submodel import FedSubAvg
from partwise.channels.plain import Plain
from partwise.core.algorithm import Algorithm
from partwise.core.index import Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.experiment.population_summary import population_summary
from partwise.populations.arrays import ArrayPopulation
from partwise.programs.star import Star
from partwise.schedulers.synchronous import Synchronous


def toy_star(algorithm: Algorithm) -> Star:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(7, 2), nn.Linear(2, 1)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids)).squeeze(-1)

    model = Model(Net, loss=MeanSquaredError("ids"), inputs=("ids",), tables={"table.weight": ("ids",)})
    ids = torch.tensor([0, 0, 3, 3, 6, 0, 1, 2, 3, 4])
    population = ArrayPopulation(
        {"ids": ids}, torch.tensor([0, 2, 5, 10]), {"ids": ids[:3]}, torch.tensor([0, 2, 2, 3])
    )
    return Star(algorithm=algorithm, scheduler=Synchronous(), model=model, population=population, channel=Plain())


def test_population_summary():
    about = population_summary(toy_star(FedSubAvg()))
    # rows {0}, {3, 6} and {0, 1, 2, 3, 4}; beside its rows of 2 each client holds the 3 parameters of the output
    assert about == {
        "clients": 3,
        "numbers": None,
        "names": None,
        "examples": [2, 3, 5],
        "test_examples": [2, 0, 1],
        "sampled": 3,
        "rows_touched": [1, 2, 5],
        "values_held": [5, 7, 13],
        "heat": {"table.weight": [[2, 2], [1, 4], [0, 1]]},
        "model": {"parameters": 17, "bytes": 68, "tables": {"table.weight": [7, 2]}},
    }


def test_population_summary_of_whole_models_and_of_a_sample():
    assert population_summary(toy_star(FedAvg()))["values_held"] == [17, 17, 17]
    # What stays on a client is held too, whole: the output's weights, or the table.
    for names, inner, held in (
        (("out.weight", "out.bias"), FedSubAvg(), [5, 7, 13]),
        (("out.weight",), FedAvg(), [17, 17, 17]),
        (("table.weight",), FedSubAvg(), [17, 17, 17]),
    ):
        assert population_summary(toy_star(LocalOnly(inner, names)))["values_held"] == held
    some = population_summary(toy_star(FedSubAvg()), limit=2)
    assert (some["clients"], some["sampled"], some["rows_touched"]) == (3, 2, [1, 5])
    assert some["examples"] == [2, 3, 5]
    with pytest.raises(ValueError, match=r"population_summary\(limit=0\): must be at least 1, got 0"):
        population_summary(toy_star(FedAvg()), limit=0)


def test_the_sizes_of_an_index_that_many_clients_have_are_counted_once(monkeypatch):
    asked = []
    held_shape = Whole.held_shape
    monkeypatch.setattr(Whole, "held_shape", lambda index, name: asked.append(name) or held_shape(index, name))
    assert population_summary(toy_star(FedAvg()))["values_held"] == [17, 17, 17]
    assert sorted(asked) == ["out.bias", "out.weight", "table.weight"]  # and not once for each of three clients

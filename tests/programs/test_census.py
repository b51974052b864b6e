"""Counting a population: the same as adding up masks, client by client."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from partwise.core.algorithm import Algorithm
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.programs import census
from partwise.schedulers import Synchronous
from toy_star import Clients, star_of

SHAPES = {"E": (5, 2), "b": (3,), "lonely": (2,)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def of(names):
    return {name: SHAPES[name] for name in names}


def rows(*at):
    return Rows(of(["E", "b"]), {"E": torch.tensor(at, dtype=torch.int64), "b": None})


HELD = [
    rows(0, 3),
    Whole(of(["E"])),
    rows(3, 4),
    Grid(of(["E", "b"]), {"E": (torch.tensor([1, 3]), torch.tensor([1])), "b": (torch.tensor([2]),)}),
    rows(),
    Joint((Coords(of(["E"]), {"E": torch.tensor([7])}), Whole(of(["b"])))),
    rows(0, 1, 2),
]
WEIGHTS = [3.0, 0.5, 11.0, 2.0, 7.0, 1.25, 4.0]


@dataclass(frozen=True)
class Told(Algorithm):
    """Client i holds HELD[i]."""

    clients: tuple[int, ...]

    def select(self, task, own, site):
        return HELD[self.clients[site.client]]

    def weight(self, site):
        return WEIGHTS[self.clients[site.client]]


def masks(clients):
    """Heat and weight with the parameters' shapes, in plain loops."""
    heat, weight = ({name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()} for _ in "ab")
    for c in clients:
        for name in HELD[c].shapes:
            for at in HELD[c].coords(name).tolist():
                heat[name].view(-1)[at] += 1
                weight[name].view(-1)[at] += WEIGHTS[c]
    return heat, weight


@pytest.mark.parametrize("together", [0, 4, 1 << 16])
@pytest.mark.parametrize("clients", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (0, 2, 4), (1,)], ids=str)
def test_counts_as_plain_loops_do(clients, together, monkeypatch):
    monkeypatch.setattr(census, "_TOGETHER", together)
    population = Clients([{"x": torch.zeros(1)}] * len(clients))
    found = census.count(star_of(Told(clients), Model(Net, MeanSquaredError()), population, Synchronous(1, 1)))
    heat, weight = masks(clients)
    assert found.total_weight == sum(WEIGHTS[c] for c in clients)
    for name, shape in SHAPES.items():
        assert torch.equal(found.heat[name].expand(shape), heat[name])
        assert torch.equal(found.weight[name].expand(shape), weight[name])
    if clients == (0, 2, 4):
        assert found.heat["E"].shape == (5, 1)  # as coarse as rows allow
        assert found.heat["b"].shape == (1,)

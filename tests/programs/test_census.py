"""Counting a population: the same as adding up masks, client by client."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg
from partwise.core.algorithm import Algorithm
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.model import MeanSquaredError, Model
from partwise.core.transform import chain
from partwise.programs import census
from partwise.schedulers import Synchronous
from partwise.transforms import CapWeight, Quantize
from toy_star import Clients, everybody, full_batch, number_model, parabolas, run, server, star_of

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


def test_a_client_counts_for_what_its_chain_leaves_of_its_weight():
    population = Clients([{"x": torch.zeros(1)}] * 3)
    behind = {"model": chain(CapWeight(3.5), Quantize(4))}  # the second says nothing of weights
    star = star_of(Told((0, 1, 2)), Model(Net, MeanSquaredError()), population, Synchronous(1, 1), client_chain=behind)
    found = census.count(star)  # of weights 3, 0.5 and 11
    assert found.total_weight == 3 + 0.5 + 3.5
    assert found.weight["E"][:, 0].tolist() == [3.5, 0.5, 0.5, 7.0, 4.0]
    assert found.heat["E"][:, 0].tolist() == [2, 1, 1, 3, 2]


def test_capped_weights_are_the_weights_that_a_mean_over_the_population_divides_by():
    population = parabolas(b=(2.0, 8.0), sizes=(1, 9))
    scheduler, capped = everybody(population, 1), {"model": chain(CapWeight(1.0))}
    algorithm = FedAvg(full_batch(1, lr=0.1), weights="unbiased")
    star = star_of(algorithm, number_model(), population, scheduler, client_chain=capped)
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert log.seen == pytest.approx([(0.1 * 1 * 2 + 0.1 * 3 * 8) / 2])  # a step each on a/2 (w - b)², from 0, alike

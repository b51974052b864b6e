"""Clients that tell how useful they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from partwise.algorithms import Deniable, FedAvg, FedRank, FedSubAvg, LocalOnly, Scaffold, Utility
from partwise.core.errors import CompositionError
from partwise.core.model import CrossEntropy, Model
from partwise.schedulers import Synchronous
from partwise.schedulers.choices import Oort
from toy_star import Clients, everybody, full_batch, number_model, parabolas, run, server, star_of


def reports(algorithm, model, population, rounds=1, seed=0):
    """Client -> what it told, in each round; from what the server holds when a reply arrives."""
    told = []

    class Listening(type(algorithm)):
        def report(self, held, trained, task, own, site):
            found = super().report(held, trained, task, own, site)
            told.append((task.version, site.client, dict(found)))
            return found

    listening = Listening(*(getattr(algorithm, f) for f in algorithm.__dataclass_fields__))
    states, log = run(star_of(listening, model, population, everybody(population, rounds), seed=seed))
    assert not log.of("lost")
    return told, states


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_numbers_of_the_method_notes(batch_size):
    """Losses (1, 2, 2): 3 sqrt(9 / 3) = 5.196152. They are a/2 (0 - b)^2, before training."""
    double = torch.float64
    rows = {"a": torch.tensor([2.0, 4.0, 1.0], dtype=double), "b": torch.tensor([1.0, -1.0, 2.0], dtype=double)}
    told, _ = reports(Utility(FedAvg(full_batch(3)), batch_size), number_model(), Clients([rows]))
    assert told[0][2] == {"utility": pytest.approx(3 * math.sqrt(3), rel=1e-12)}
    assert round(told[0][2]["utility"], 6) == 5.196152


def test_it_follows_the_values_that_were_received():
    population = parabolas(sizes=(2, 3))
    told, _ = reports(Utility(FedAvg(full_batch(1, lr=0.1))), number_model(), population, rounds=2)
    first = {0: 0.0, 1: 3 * (1.5 * 16.0)}
    w = (2 * 0.0 + 3 * 0.1 * 3 * 4.0) / 5
    second = {0: 2 * 0.5 * w**2, 1: 3 * 1.5 * (w - 4) ** 2}
    assert {c: t["utility"] for v, c, t in told if v == 0} == pytest.approx(first)
    assert {c: t["utility"] for v, c, t in told if v == 1} == pytest.approx(second)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        return self.out(self.norm(x))


def shifted():
    rng = torch.Generator().manual_seed(0)
    return Clients(
        [
            {"x": torch.randn(n, 3, generator=rng).double() * 2 + 1, "y": torch.randint(2, (n,), generator=rng)}
            for n in (6, 4)
        ]
    )


def test_personal_values_are_used_and_nothing_is_changed():
    population, model = shifted(), Model(Normed, CrossEntropy())
    inner = LocalOnly(FedAvg(full_batch(2)))
    told, states = reports(Utility(inner), model, population, rounds=2, seed=4)
    plain, _ = run(star_of(inner, model, population, everybody(population, 2), seed=4))
    for name, tensor in plain[-1].streams["model"].items():
        assert torch.equal(tensor, states[-1].streams["model"][name])
    _, before = reports(Utility(inner), model, population, rounds=1, seed=4)
    for client in (0, 1):
        module = Normed()
        module.load_state_dict({**before[-1].streams["model"], **before[client].own.value}, strict=False)
        module.eval()
        rows = population.columns[client]
        losses = [
            nn.functional.cross_entropy(module(x[None]), y[None]).item()
            for x, y in zip(rows["x"], rows["y"], strict=True)
        ]
        oracle = len(losses) * math.sqrt(sum(loss**2 for loss in losses) / len(losses))
        found = next(t["utility"] for v, c, t in told if (v, c) == (1, client))
        assert found == pytest.approx(oracle, rel=1e-12)


def test_it_must_be_outermost():
    """A client that cannot tell is lost, with the reason."""
    population = shifted()
    star = star_of(
        LocalOnly(Utility(FedAvg(full_batch(1)))), Model(Normed, CrossEntropy()), population, everybody(population, 1)
    )
    _, log = run(star)
    said = str(log.of("lost") + log.of("refused") + log.of("failed"))
    assert "LocalOnly(Utility): keeps 'norm." in said
    assert "from an algorithm whose clients need all of the model." in said


def test_other_streams_stay():
    told, states = reports(Utility(Scaffold(full_batch(1))), number_model(), parabolas(), rounds=2)
    assert {"model", "control"} <= states[-1].streams.keys()
    assert all("utility" in found for _, _, found in told)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.E = nn.Embedding(20, 2)
        self.double()

    def forward(self, word):
        return self.E(word)


def test_ids_are_numbered_within_the_held_rows():
    model = Model(Table, CrossEntropy(), inputs=("word",), tables={"E.weight": ("word",)})
    population = Clients([{"word": torch.tensor([3, 17, 3]), "y": torch.tensor([0, 1, 1])}])
    told, _ = reports(Utility(FedSubAvg(local=full_batch(1))), model, population, seed=5)
    table = model.init(5)["E.weight"]
    losses = [float(nn.functional.cross_entropy(table[w], torch.tensor(y))) for w, y in ((3, 0), (17, 1), (3, 1))]
    assert told[0][2]["utility"] == pytest.approx(math.sqrt(3 * sum(loss**2 for loss in losses)))


def test_what_is_not_finite_is_left_out():
    rows = {"a": torch.tensor([math.inf], dtype=torch.float64), "b": torch.ones(1, dtype=torch.float64)}
    algorithm = Utility(FedAvg(full_batch(1)))
    population = Clients([rows])
    site = star_of(algorithm, number_model(), population, everybody(population, 1)).site(0)
    held = {"model": {"w": torch.zeros((), dtype=torch.float64)}}
    assert algorithm.report(held, None, None, None, site) == {}


def test_oort_is_told():
    population = parabolas((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0))
    scheduler = Synchronous(cohort=2, rounds=3, choice=Oort())
    states, log = run(star_of(Utility(FedAvg(full_batch(1))), number_model(), population, scheduler), server)
    assert len(log.of("commit")) == 3
    assert len(states[-1].schedule.chosen["known"]) >= 2


def test_batch_size_must_be_one_at_least():
    with pytest.raises(ValueError, match=r"Utility\(batch_size=0\): must be at least 1, got 0\. 256 is usual\."):
        Utility(FedAvg(), 0)


def test_losses_of_examples_whose_rows_are_hidden_are_not_told():
    with pytest.raises(
        CompositionError, match=r"Utility\(Deniable\): has clients tell the losses of their examples, got one"
    ):
        Utility(Deniable(FedSubAvg("count")))


def test_scores_of_edges_are_no_model_whose_losses_count():
    with pytest.raises(
        CompositionError, match=r"Utility\(FedRank\): takes the losses of the model that a client holds"
    ):
        Utility(FedRank())

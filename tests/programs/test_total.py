"""What an aggregator gives is looked at before it is committed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from partwise.aggregators import SLSGD, TrimmedMean
from partwise.algorithms import FedAvg, Scaffold
from partwise.core.mean import Mean
from partwise.core.model import Model
from partwise.core.program import SERVER
from partwise.core.transform import Chain, Identity
from partwise.local import SGD, LocalTraining
from partwise.transforms import Clip, ServerSGD
from toy_star import Cohorts, Parabola, everybody, full_batch, number_model, parabolas, run, star_of


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, a):
        return self.w.sum().expand(len(a))


@dataclass(frozen=True)
class Stretched(Mean):
    """Gives a single number for all of a parameter, or its values by name and no update."""

    is_bare: bool = False

    def reduce(self, got, state, params, replies=()):
        total, state = super().reduce(got, state, params, replies)
        value = {n: v.sum() for n, v in total.values().items()}
        return value if self.is_bare else replace(total, value=value), state


@pytest.mark.parametrize(
    ("is_bare", "got"),
    [
        (False, r"Update\('w'\): the value must have the held shape \(2,\), got \(\)\."),
        (True, r"a dict\. Return Update"),
    ],
)
def test_what_an_aggregator_gives_is_not_stretched_to_fit(is_bare, got):
    population, model = parabolas(), Model(Pair(), Parabola(), inputs=("a",))
    algorithm = FedAvg(LocalTraining(SGD(0.1)))
    parts = {"aggregators": {"model": Stretched(is_bare=is_bare)}}
    _, log = run(star_of(algorithm, model, population, everybody(population, 1), **parts))
    (skipped,) = log.of("skipped")
    assert re.match(rf"Stretched\(.*\): must give an update of the server's model, got:? {got}", skipped["reason"])
    assert not log.of("commit")


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float16))

    def forward(self, a):
        return self.w.double().sum().expand(len(a))


@dataclass(frozen=True)
class Told(Mean):
    """Adds up what a client sent as if it had many examples."""

    def reduce(self, got, state, params, replies=()):
        assert got.value["w"].dtype == torch.float32
        return super().reduce(got, state, params, replies)


def test_a_sum_that_is_no_number_of_half_precision_has_a_mean_that_is_one():
    """Three clients of 30,000 examples and steps of 2: 180,000 is beyond 65,504, the largest number of float16."""
    population = parabolas((1.0,) * 3, (2.0,) * 3, sizes=(30_000,) * 3)
    model = Model(Halved(), Parabola(), inputs=("a",))
    algorithm = FedAvg(LocalTraining(SGD(1.0), batch_size=0))
    scheduler = everybody(population, 1)
    states, log = run(star_of(algorithm, model, population, scheduler, aggregators={"model": Told("cohort")}))
    assert not log.of("skipped")
    found = states[SERVER].streams["model"]["w"]
    assert found.dtype == torch.float16
    assert found.tolist() == [2.0, 2.0]


def test_of_a_commit_that_one_stream_refuses_the_others_remember_nothing():
    """The rule for `control` refuses two clients; that for `model`, and the momentum behind it, go on as before."""
    everyone = (0, 1, 2)
    parts = {
        "aggregators": {"model": SLSGD(0, decay=0.5, decay_at=(3,)), "control": TrimmedMean(trim_count=1)},
        "server_chain": {"model": ServerSGD(lr=1.0, momentum=0.5)},
    }
    found = []
    for cohorts in ((everyone, (0, 1), everyone), (everyone, everyone)):
        population = parabolas((1.0, 3.0, 0.5), (0.0, 4.0, -3.0))
        algorithm = Scaffold(full_batch(2))
        states, log = run(star_of(algorithm, number_model(), population, Cohorts(cohorts), **parts))
        assert (len(log.of("commit")), len(log.of("skipped"))) == (2, len(cohorts) - 2)
        found.append((float(states[SERVER].streams["model"]["w"]), states[SERVER].reducers["model"]))
    assert found[0] == found[1]
    assert found[0][1] == 2  # commits


@dataclass(frozen=True)
class Summed:
    """A stage that gives a single number for all of a parameter."""

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return replace(update, value={n: v.sum() for n, v in update.values().items()}), state


@pytest.mark.parametrize("behind", [(), (ServerSGD(lr=1.0),), (Clip(max_norm=1.0),), (Chain((Summed(), Identity())),)])
def test_what_a_stage_of_a_server_chain_gives_is_not_stretched_by_the_next(behind):
    population, model = parabolas(), Model(Pair(), Parabola(), inputs=("a",))
    parts = {"server_chain": {"model": Chain((Identity(), Summed(), *behind))}}
    states, log = run(star_of(FedAvg(LocalTraining(SGD(0.1))), model, population, everybody(population, 1), **parts))
    (skipped,) = log.of("skipped")
    rule = (
        "must give an update of the server's model, got: Update('w'): the value must have the held shape (2,), got ()"
    )
    assert skipped["reason"].startswith(f"Summed(): {rule}")
    assert states[SERVER].streams["model"]["w"].tolist() == [0.0, 0.0]

"""How the clients of a population are numbered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.errors import DataError
from partwise.core.metrics import Loss
from partwise.core.population import Fate, Profile, check_clients
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from toy_star import Clients, Cohorts, full_batch, number_model, parabolas, run, star_of


@dataclass
class Numbered(Clients):
    """Two parabolas, whose clients have other numbers."""

    numbers: Any = ()

    @property
    def clients(self) -> Sequence[int]:
        return self.numbers

    def data(self, client):
        return super().data(client % 2)


@pytest.mark.parametrize(
    ("numbers", "got"),
    [
        ([-2, -1, 0], "got -2."),
        (range(-1, 4), "got -1."),
        ([0, 2, 2], "got 2 after 2."),
        ([5, 3], "got 3 after 5."),
        ([0, 2**31], f"got {2**31} after 0."),
        (range(2**31 - 1, 2**31 + 1), f"got {2**31} after {2**31 - 1}."),
        ([0, True], "got True after 0."),
        (["a", "b"], "got 'a'."),
        (np.arange(3), f"got {np.int64(0)!r}."),
    ],
)
def test_clients_are_whole_numbers_from_0_on_that_ascend(numbers, got):
    population = Numbered(parabolas().columns, numbers=numbers)
    with pytest.raises(DataError, match=re.escape(got)):
        star_of(FedAvg(full_batch(1)), number_model(), population, Cohorts(((0,),)))


@pytest.mark.parametrize("numbers", [range(0), range(2**31 - 4, 2**31), range(0, 9, 2), (0, 3, 2**31 - 1)])
def test_their_numbers_may_have_gaps(numbers):
    check_clients(Numbered(parabolas().columns, numbers=numbers))


def test_clients_with_gaps_in_their_numbers_train():
    population = Numbered(parabolas().columns, numbers=[3, 2**31 - 1])
    _, log = run(star_of(FedAvg(full_batch(1)), number_model(), population, Cohorts(((3, 2**31 - 1),))))
    assert log.of("commit")[0]["clients"] == [3, 2**31 - 1]


def told(**methods):
    """Two parabolas, of whom these methods tell something else."""
    return type("Told", (Clients,), {name: lambda self, *_, found=found: found for name, found in methods.items()})


@pytest.mark.parametrize(
    ("method", "found", "got"),
    [
        ("profile", Profile(seconds_per_step=-1.0), "Told.profile(0, 0): must give a finite pace from 0 on"),
        ("profile", Profile(seconds_per_step=math.inf), "must give a finite pace from 0 on"),
        ("profile", Profile(uplink=0.0), "links and memory above 0"),
        ("profile", Profile(downlink=math.nan), "downlink=nan"),
        ("profile", Profile(width=2.0), "a width in (0, 1]"),
        ("profile", Profile(memory=None), "memory=None"),
        ("profile", (0.1, 1e3, 1e3), "Told.profile(0, 0): must give a Profile, got a tuple."),
        ("profile", None, "must give a Profile, got None."),
        ("next_available", -1.0, "Told.next_available(0, 0.0): must give a moment that is not before"),
        ("next_available", math.nan, "got nan."),
        ("next_available", None, "got None."),
        ("available_until", None, "Told.available_until(0, 0.0): must give a moment"),
        ("fate", None, "Told.fate(0, 0): must give a Fate, got None."),
        ("fate", "train", "must give a Fate, got a str."),
        ("fate", Fate("trian", 0.5), "must give a stage of ('', 'download', 'train', 'upload')"),
        ("fate", Fate("train", 1.5), "must give a share in [0, 1]"),
        ("fate", Fate("train", 0.5, -7.0), "seconds from 0 on"),
        ("fate", Fate("", 0.0, 0.0, None), "late_seconds=None"),
    ],
)
def test_what_is_told_of_the_first_client_can_be(method, found, got):
    with pytest.raises(DataError, match=re.escape(got)):
        check_clients(told(**{method: found})(parabolas().columns))


def test_until_when_a_client_is_there_is_not_asked_of_one_that_is_away():
    check_clients(told(next_available=5.0, available_until=None)(parabolas().columns))


@pytest.mark.parametrize(
    ("clients", "got"),
    [({0, 1}, "a set"), (None, "None"), (iter([0, 1]), "a list_iterator"), ({0: "a"}, "a dict"), (len, "a builtin")],
)
def test_clients_are_a_sequence(clients, got):
    with pytest.raises(DataError, match=rf"Numbered\.clients: must be a property that gives a sequence.*got {got}"):
        check_clients(Numbered(parabolas().columns, numbers=clients))


@pytest.mark.parametrize("wrong", [Profile(-1.0), Profile(1.0, 0.0), Profile(1.0, 1e3, -5.0), Profile(math.nan)])
def test_a_client_by_whom_the_clock_would_stop_or_run_backwards_is_named(wrong):
    population = Clients(parabolas().columns, profiles={0: Profile(1.0), 1: wrong})  # the first one is as it should be
    with pytest.raises(DataError, match=r"Clients\.profile\(1, [\d.]+\): must give a finite pace from 0 on, links"):
        run(star_of(FedAvg(full_batch(1)), number_model(), population, Cohorts(((0, 1),))))


@pytest.mark.parametrize(
    ("method", "found", "words"),
    [
        ("data", None, "a Dataset, got None"),
        ("data", {"x": torch.zeros(2, 1)}, "a Dataset, got a dict"),
        ("test_data", {"x": torch.zeros(2, 1)}, "a Dataset, or None, got a dict"),
    ],
)
def test_data_that_are_no_dataset_are_named(method, found, words):
    population = told(**{method: found})(parabolas().columns)
    experiment = Experiment(Workload(number_model(), population, (Loss(number_model().loss),)), FedAvg(full_batch(1)))
    with pytest.raises(DataError, match=rf"Told\.{method}\(0\): must give {words}\. Give Examples"):
        experiment.build()

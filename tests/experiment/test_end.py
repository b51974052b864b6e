"""Runs that would never end."""

from __future__ import annotations

import math

import pytest
import torch

from partwise.core.errors import CompositionError
from partwise.core.population import Population, Profile
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.store import RunStore
from partwise.populations import ArrayPopulation
from partwise.schedulers import FedAsync, FedBuff, FedCompass, FedFix, Tiered
from toy_scores import Toy, experiment


class Instant(Toy):
    """Clients that take no time."""

    profile = Population.profile


NEVER = {"versions": 0, "seconds": 60.0}
BY_CLOCK = [FedAsync(concurrency=3, **NEVER), FedBuff(2, 4, **NEVER), FedCompass(1, 2, **NEVER), Tiered(2, 2, **NEVER)]


@pytest.mark.parametrize("scheduler", BY_CLOCK, ids=lambda part: type(part).__name__)
def test_a_clock_that_stands_still_ends_no_run(scheduler, tmp_path):
    assert Instant().is_instant
    with pytest.raises(
        CompositionError, match=r"must come to an end, got clients that take no time, so that 60 seconds"
    ):
        experiment(Instant(), scheduler=scheduler).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_windows_pass_and_targets_are_reached_all_the_same(tmp_path):
    experiment(Instant(), scheduler=FedFix(20.0, **NEVER)).run(tmp_path / "windows")
    experiment(Instant(), scheduler=BY_CLOCK[1], evaluation=Evaluation(target=0.0)).run(tmp_path / "target")
    for name, ended in (("windows", "60 seconds are over"), ("target", "target reached")):
        with RunStore(tmp_path / name, "read") as store:
            assert store.meta()["status"].startswith(ended)
            assert math.isfinite(store.metrics("train_loss")[-1]["value"])


def test_clients_that_take_time_end_it(tmp_path):
    experiment(scheduler=BY_CLOCK[0]).run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"] == "60 seconds are over"


def test_clients_whose_class_says_that_they_take_time_are_not_instant():
    class Slow(ArrayPopulation):
        def profile(self, client: int, now: float = 0.0) -> Profile:
            return Profile(seconds_per_step=1.0)

    columns = {"x": torch.ones(4, 1), "y": torch.ones(4, 1)}
    assert ArrayPopulation(columns, torch.tensor([0, 2, 4])).is_instant
    assert not Slow(columns, torch.tensor([0, 2, 4])).is_instant

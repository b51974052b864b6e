"""Runs that would never end."""

from __future__ import annotations

import math

import pytest
import torch

from partwise.core.errors import CompositionError
from partwise.core.population import Fate, Population, Profile
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
        CompositionError, match=r"must come to an end, got clients that take no time, so that its `seconds`"
    ):
        experiment(Instant(), scheduler=scheduler).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class HalfDays(Instant):
    """Clients that take no time, each there for every other hour."""

    def next_available(self, client: int, now: float) -> float:
        hour = now // 3600
        return now if hour % 2 == client % 2 else (hour + 1) * 3600

    def available_until(self, client: int, now: float) -> float:
        hour = now // 3600
        return (hour + 1) * 3600 if hour % 2 == client % 2 else now


class OneAtOnce(Toy):
    """Of clients that take time, one that takes none."""

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile() if client == 1 else Profile(seconds_per_step=1.0)


class Late(Instant):
    """Clients that take no time, and answer a third of their tasks a second late."""

    def fate(self, client: int, task: int) -> Fate:
        return Fate(late_seconds=1.0 if task % 3 == 0 else 0.0)


@pytest.mark.parametrize("scheduler", BY_CLOCK, ids=lambda part: type(part).__name__)
def test_it_stands_still_too_where_clients_are_away_at_times(scheduler, tmp_path):
    assert not HalfDays().is_instant
    with pytest.raises(CompositionError, match="must come to an end, got clients that take no time"):
        experiment(HalfDays(), scheduler=scheduler).run(tmp_path / "run")


def test_it_goes_on_where_some_take_time_or_are_late_or_others_are_waited_for(tmp_path):
    soon = {"versions": 0, "seconds": 12.0}
    experiment(OneAtOnce(), scheduler=FedAsync(concurrency=2, **soon)).run(tmp_path / "others")
    experiment(Late(), scheduler=FedAsync(concurrency=3, **soon)).run(tmp_path / "late")
    everybody = len(Instant().clients)
    hours = FedBuff(everybody, everybody, replace="commit", versions=0, seconds=12 * 3600.0)
    experiment(HalfDays(), scheduler=hours).run(tmp_path / "hours")
    for name, ended in (("others", "12 seconds"), ("late", "12 seconds"), ("hours", "43200 seconds")):
        with RunStore(tmp_path / name, "read") as store:
            assert store.meta()["status"] == f"{ended} are over"


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

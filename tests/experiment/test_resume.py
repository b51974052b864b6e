"""Killed at any moment and resumed, a run ends with the bits of an undisturbed one, client state included."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from partwise.core.runtime import Runtime
from partwise.experiment.experiment import Experiment
from partwise.runtimes import Processes, Simulate
from toy_experiments import ASYNCHRONOUS, experiment
from toy_killed import attempt, everything


def killed_often(made: Experiment, folder: Path, moments: list[float]) -> int:
    """Run to the end with a kill at each of the moments, in seconds from the start of the process; kills that hit."""
    kills = 0
    for moment in moments:
        if attempt(made, folder, moment):
            break
        kills += 1
    attempt(made, folder, None)
    return kills


def check(which: str, runtime: Runtime, folder: Path, *, kills: int, seed: int) -> None:
    of_time = isinstance(runtime, Simulate)
    began = time.monotonic()
    experiment(which, runtime).run(folder / "undisturbed")
    longest = time.monotonic() - began
    expected = everything(folder / "undisturbed", of_time=of_time)
    draw, done, runs = random.Random(seed), 0, 0
    while done < kills:
        runs += 1
        moments = [draw.uniform(0.0, 0.6 * longest) for _ in range(min(4, kills - done))]
        done += killed_often(experiment(which, runtime), folder / f"run {runs}", moments)
        found = everything(folder / f"run {runs}", of_time=of_time)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize("which", ["control variates", "residuals", "memory", "ranks", "FedBuff", "FedCompass"])
def test_killed_and_resumed_ends_with_the_same_bits(which, tmp_path):
    check(which, Simulate(), tmp_path, kills=3, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["control variates", "residuals", *ASYNCHRONOUS])
def test_killed_at_20_random_moments(which, tmp_path):
    check(which, Simulate(), tmp_path, kills=20, seed=8)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["control variates", "residuals"])
def test_killed_at_20_random_moments_with_worker_processes(which, tmp_path):
    check(which, Processes(workers=2), tmp_path, kills=20, seed=9)


def test_worker_processes_killed_and_resumed_end_with_the_bits_of_the_simulator(tmp_path):
    check("residuals", Processes(workers=2), tmp_path, kills=2, seed=6)
    experiment("residuals", Simulate()).run(tmp_path / "simulated")
    here = everything(tmp_path / "undisturbed", of_time=False)
    assert everything(tmp_path / "simulated", of_time=False) == here


def test_two_runs_of_one_spec_are_bit_equal(tmp_path):
    experiment("residuals", Simulate()).run(tmp_path / "a")
    experiment("residuals", Simulate(memory_bytes=0)).run(tmp_path / "b")
    assert everything(tmp_path / "a", of_time=True) == everything(tmp_path / "b", of_time=True)

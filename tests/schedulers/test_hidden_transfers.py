"""The worked timing of communication.md §1, and what of it the timeline of a run shows: transfers behind training."""

from __future__ import annotations

from itertools import pairwise

import pytest

from partwise.algorithms import FedAvg
from partwise.core.population import Profile
from partwise.experiment.runs import read_run
from partwise.experiment.timeline import timeline_of
from partwise.runtimes import Simulate
from partwise.schedulers import Overlapped, Synchronous
from toy_experiments import CLIENTS, experiment
from toy_federation import LOCAL
from toy_slopes import linear, steps
from toy_star import Clients, run, star_of

SIZE, GIGABIT = 20_000, 1.0  # a model of 160 kB, at whose bytes' scale headers are little
SECONDS = 32.0  # of an exchange at 1 Gb/s: 4 GB a worker, of 10^9 parameters and two clusters in a ring


def clusters(gigabits: float) -> tuple[object, Clients]:
    """Two, whose step takes a second and whose reply takes 32 s at 1 Gb/s; the ring's exchange has no way down."""
    model, clients = linear([[(0.0,) * SIZE], [(1e-3,) * SIZE]], (0.0,) * SIZE)
    rate = gigabits * 8 * SIZE / SECONDS
    clients.profiles = dict.fromkeys(range(2), Profile(1.0, rate, float("inf")))
    return model, clients


def seconds(scheduler, local: int, gigabits: float = GIGABIT) -> list[float]:
    """When each commit was made."""
    model, clients = clusters(gigabits)
    of = star_of(FedAvg(steps(1e-3, local), "uniform"), model, clients, scheduler)
    return run(of, lambda world: world.now)[1].seen


def test_fifty_steps():
    """Data parallel 50 (1 + 32) = 1650 s, local steps 50 + 32 = 82 s, 20.12 times less; headers are 0.3 %."""
    every = seconds(Synchronous(2, rounds=50), 1)[-1]
    seldom = seconds(Synchronous(2, rounds=1), 50)[-1]
    assert every == pytest.approx(1650, rel=0.005)
    assert seldom == pytest.approx(82, rel=0.005)
    assert every / seldom == pytest.approx(20.12, rel=0.005)


def test_the_least_bandwidth_that_hides_an_exchange():
    """0.64 Gb/s, where it takes the 50 s of 50 steps; slower, a round takes as long as its exchange."""
    for gigabits, expected in ((1.0, 50.0), (0.65, 50.0), (0.5, 64.0), (0.32, 100.0)):
        times = seconds(Overlapped(6), 50, gigabits)
        assert times[3] - times[2] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("is_hidden", [True, False], ids=["overlapped", "one after another"])
def test_hiding_is_seen_on_the_timeline(tmp_path, is_hidden):
    """Each reply travels while the next task is trained; of rounds that wait, none does."""
    scheduler = Overlapped(6) if is_hidden else Synchronous(cohort=CLIENTS, rounds=6)
    part = experiment("memory", Simulate(), algorithm=FedAvg(LOCAL), scheduler=scheduler)
    part.run(tmp_path / "run")
    shown = timeline_of(read_run(tmp_path / "run"))
    assert len(shown.lines) == CLIENTS
    hidden, travelled = 0.0, 0.0
    for line in shown.lines:
        assert len(line.spans) == 6
        assert line.overlaps == is_hidden
        for one, after in pairwise(line.spans):
            _, _, (sent, ended) = one.stages
            _, (started, trained), _ = after.stages
            hidden += max(0.0, min(ended, trained) - max(sent, started))
            travelled += ended - sent
            assert one.trained <= started + 1e-9  # it does one thing at a time
    assert travelled > 0
    assert hidden > 0.5 * travelled if is_hidden else hidden == 0.0
    assert len(shown.commits) == 6

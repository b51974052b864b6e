"""The clock alone, beside the simulator that trains."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.channels import Masked
from partwise.core.errors import CompositionError
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Fate, Profile
from partwise.core.schedule import (
    After,
    Arrived,
    Commit,
    Deadline,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    ReplyInfo,
    Scheduler,
    Started,
    Stop,
)
from partwise.local import SGD, LocalTraining
from partwise.populations import Always, ArrayPopulation, Constant, Daily, Intervals, ProfileArrays, Steady, Unreliable
from partwise.runtimes.rehearse import Cost, costs_of, rehearse
from partwise.schedulers import ByLink, FedAsync, FedBuff, Synchronous, Tiered
from partwise.transforms import Clip
from toy_star import Clients, Cohorts, everybody, number_model, parabolas, run, star_of


@dataclass(frozen=True)
class Each(Scheduler):
    """Every reply is a commit; whoever has answered or was lost is asked again, until so many commits."""

    total: int
    steps: int = 0

    def init(self, roster: Any) -> Any:
        return 0

    def step(self, state: Any, event: Event, roster: Any) -> tuple[Any, list[Any]]:
        match event:
            case Started():
                return 0, [Dispatch(client, self.steps) for client in roster.clients]
            case Arrived(_, reply, _):
                again = [Stop("enough")] if state + 1 == self.total else [Dispatch(reply.client, self.steps)]
                return state + 1, [Commit([reply]), *again]
            case Lost(_, client, _, _):
                return state, [Dispatch(client, self.steps)]
        return state, []


@dataclass
class World(Clients):
    """Clients of three speeds that lose a task now and then, and one that is away at times."""

    def profile(self, client, now=0.0):
        return Profile(0.25 * (1 + client), uplink=400.0 * (1 + client), downlink=3000.0)

    def fate(self, client, task):
        stage = ["", "train", "", "", "upload", "", "download"][(3 * client + task) % 7]
        return Fate(stage, 0.4, notice_seconds=2.0, late_seconds=1.5 * (task % 3 == 1))

    def next_available(self, client, now):
        return now if client != 2 or now % 9 < 6 else now - now % 9 + 9

    def available_until(self, client, now):
        return float("inf") if client != 2 else now - now % 9 + 6 if now % 9 < 6 else now


def columns(client: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(client)
    n = 4 + 3 * client
    return {"ids": torch.randint(2 + 9 * client, (n, 2), generator=draw), "y": torch.randint(3, (n,), generator=draw)}


def table() -> Model:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head = nn.Embedding(40, 5), nn.Linear(5, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.rows(ids).mean(1))

    return Model(Bag, CrossEntropy(), inputs=("ids",), tables={"rows.weight": ("ids",)})


@pytest.mark.parametrize("algorithm", [FedAvg, FedSubAvg])
@pytest.mark.parametrize("steps", [0, 5])
def test_its_times_are_those_of_a_simulated_run(algorithm, steps):
    population = World([columns(c) for c in range(3)])
    star = star_of(algorithm(local=LocalTraining(SGD(0.1), batch_size=2)), table(), population, Each(25, steps))
    _, log = run(star, lambda world: world.now)
    _, losses = run(star, lambda world: (world.now, world.traffic.uplink), "lost")
    found = rehearse(star.scheduler, population, costs_of(star))
    assert found.reason == "enough"
    # The number of a task has one byte more above 23, and so on: a few bytes in some hundreds of seconds.
    assert list(found.commits) == pytest.approx(log.seen, abs=0.05)
    assert found.lost == Counter(fields["stage"] for fields in log.of("lost"))
    assert found.lost.total() > 5
    assert {"train", "upload", "download"} == set(found.lost)
    staleness = [r["staleness"][0] for r in log.of("commit")]
    assert dict(found.staleness) == {u: staleness.count(u) for u in set(staleness)}
    clients = [r["clients"][0] for r in log.of("commit")]
    assert dict(found.committed) == {c: clients.count(c) for c in set(clients)}
    assert found.uplink == pytest.approx(losses.seen[-1][1], rel=0.1)


@pytest.mark.parametrize(
    "scheduler",
    [
        Synchronous(cohort=4, rounds=6, steps=4, deadline_seconds=4.0),
        FedBuff(2, 4, versions=12, steps=4),
        FedAsync(concurrency=4, versions=15, steps=4),
        Tiered(cohort=3, versions=12, steps=4),
    ],
)
def test_what_is_at_one_moment_comes_in_the_order_of_a_simulated_run(scheduler):
    """Many answers come together, or when a round ends: a timer is first, and then the client of the lower number."""
    population = parabolas((1.0,) * 8, range(8))
    population.profiles = {client: Profile(1.0 + client % 2) for client in range(8)}
    star = star_of(FedAvg(local=LocalTraining(SGD(0.01), steps=4)), number_model(), population, scheduler)
    _, log = run(star, lambda world: world.now)
    found = rehearse(scheduler, population, lambda task: Cost(task.steps))
    assert list(found.commits) == log.seen
    commits = log.of("commit")
    assert found.committed == Counter(client for commit in commits for client in commit["clients"])
    assert found.staleness == Counter(stale for commit in commits for stale in commit["staleness"])


def test_who_answers_when_the_round_ends_is_too_late():
    population = parabolas((1.0,) * 4, (0.0,) * 4)
    population.profiles = {client: Profile((1.0, 0.5)[client % 2]) for client in range(4)}
    found = rehearse(Synchronous(4, rounds=3, deadline_seconds=4.0), population, lambda task: Cost(steps=4))
    assert list(found.commits) == [4.0, 8.0, 12.0]
    assert (found.committed, found.lost) == ({1: 3, 3: 3}, {"deadline": 6})


@pytest.mark.parametrize(("notice", "stage"), [(0.0, "upload"), (50.0, "deadline"), (math.inf, "deadline")])
def test_a_task_is_lost_once(notice, stage):
    """One that was given up before the server was told of its loss is given up, as a run records it."""
    population = ArrayPopulation(
        {"x": torch.zeros(40)},
        torch.arange(41),
        profiles=Constant(seconds_per_step=0.5),
        reliability=Unreliable(upload=0.3, notice_seconds=notice),
    )
    scheduler = Synchronous(cohort=10, rounds=20, deadline_seconds=30.0)
    found = rehearse(scheduler, population, lambda task: Cost(steps=4))
    assert set(found.lost) == {stage}
    assert found.lost.total() + found.committed.total() == found.dispatched == 200


def test_hand_computed_costs():
    population = parabolas((1.0, 1.0), (0.0, 0.0))
    population.profiles = {0: Profile(2.0, uplink=10.0, downlink=20.0), 1: Profile(1.0)}
    cost = Cost(steps=3, task=20, fetch=30, held=40, reply=50)
    found = rehearse(Cohorts(((0, 1), (1,))), population, lambda task: cost)
    # client 0: 1 + 3 + 2 + 6 + 5 seconds; client 1: 3
    assert list(found.commits) == [17.0, 20.0]
    assert (found.uplink, found.downlink, found.dispatched, found.events) == (240, 180, 3, 4)
    assert found.committed == {0: 1, 1: 2}


@dataclass(frozen=True)
class Odd(Scheduler):
    """Asks twice, or for ever at one instant, or gives up."""

    kind: str
    heard: list[Event] = field(default_factory=list)

    def init(self, roster: Any) -> Any:
        return ()

    def step(self, state: Any, event: Event, roster: Any) -> tuple[Any, list[Any]]:
        self.heard.append(event)
        match self.kind, event:
            case "twice", Started():
                return (), [Dispatch(0), Dispatch(0)]
            case "instant", Started() | Arrived():
                return (), [Dispatch(0)]
            case "up", Started():
                return (), [Dispatch(0), Dispatch(1), After(4.0, 7)]
            case "up", Deadline():
                return (), [GiveUp([1]), Dispatch(1)]
        return (), []


def test_who_is_given_up_is_heard_no_more_and_may_be_asked_again():
    population = parabolas()
    population.profiles = {0: Profile(1.0), 1: Profile(5.0)}
    scheduler = Odd("up")
    found = rehearse(scheduler, population, lambda task: Cost(1))
    heard = [(type(e).__name__, e.now) for e in scheduler.heard]
    assert heard == [("Started", 0.0), ("Arrived", 1.0), ("Deadline", 4.0), ("Arrived", 9.0)]
    assert found.lost == {"deadline": 1}
    replies = [event.reply for event in scheduler.heard if isinstance(event, Arrived)]
    assert replies == [ReplyInfo(**reply._asdict()) for reply in replies]  # none of its fields is left out


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("twice", r"must ask clients that are free, got client 0, which is at a task. Wait for it, or give it up."),
        ("instant", r"must let time pass, got a million events at second 0. Give the clients a pace"),
    ],
)
def test_schedulers_that_would_never_end_are_told(kind, says, monkeypatch):
    monkeypatch.setattr("partwise.runtimes.rehearse._AT_ONE_INSTANT", 999)
    with pytest.raises(CompositionError, match=says):
        rehearse(Odd(kind), parabolas(), lambda task: Cost(1))


def test_bounds():
    population = parabolas()
    population.profiles = dict.fromkeys(range(2), Profile(1.0))
    assert rehearse(Each(10**6), population, lambda task: Cost(1), until=7.5).reason == "time is up"
    found = rehearse(Each(10**6), population, lambda task: Cost(1), max_events=50)
    assert (found.reason, found.events) == ("enough events", 50)


def test_a_client_that_cannot_do_its_task_is_told():
    population = Clients([{"a": torch.zeros(0), "b": torch.zeros(0)}])
    star = star_of(FedAvg(), number_model(), population, Cohorts(((0,),)))
    with pytest.raises(CompositionError, match=r"client 0: must do its task, got .*has no examples"):
        rehearse(star.scheduler, population, costs_of(star))


def test_what_a_channel_exchanges_is_not_left_out_in_silence():
    five = parabolas((1.0,) * 5, (0.0,) * 5)
    star = star_of(FedAvg(), number_model(), five, everybody(five, 1), client_chain={"model": Clip(1.0)})
    star = replace(star, channel=Masked())
    with pytest.raises(CompositionError, match=r"Masked\(.*\): exchanges messages .* not rehearsed\. Run it"):
        costs_of(star)


@dataclass(frozen=True)
class Waves(Scheduler):
    """Asks everybody who is free, one wave after another; commits each wave that is over, gives the slowest up."""

    waves: int
    apart: bool = False

    def init(self, roster: Any) -> Any:
        return 0, (), ()

    def step(self, state: Any, event: Event, roster: Any) -> tuple[Any, list[Any]]:
        wave, got, out = state
        match event:
            case Started() | Deadline():
                asked = [c for c in roster.clients if roster.next_available(c, event.now) <= event.now]
                between = [After(math.inf, 0)] if self.apart else []  # so that no two tasks follow one another
                tasks = [action for c in asked for action in (Dispatch(c, 3 + c % 4, group=wave), *between)]
                end = [Stop()] if wave == self.waves else [*tasks, After(3.0, 0)]
                return (wave + 1, (), asked), [GiveUp(out), *([Commit(got)] if got else []), *end]
            case Arrived(_, reply, _):
                return (wave, (*got, reply), [c for c in out if c != reply.client]), []
            case Lost(_, client, _, _):
                return (wave, got, [c for c in out if c != client]), []


@pytest.mark.parametrize("reliability", [Steady(), Unreliable(0.1, 0.1, 0.1, 2.0, late_share=0.2, late_seconds=3.0)])
@pytest.mark.parametrize("availability", [Always(), Daily(0.5, period_seconds=20.0), "trace"])
def test_many_tasks_at_once_are_told_as_one_by_one(availability, reliability):
    """To the bit, with losses at every stage, and intervals that end in the middle of a wave and go on at midnight."""
    draw, n = np.random.default_rng(3), 150
    if availability == "trace":
        start = draw.random(2 * n).reshape(n, 2).cumsum(1) * 9
        start[::3, 0] = 0.0
        end = np.stack([0.5 * start.sum(1), np.where(np.arange(n) % 4, 0.5 * (start[:, 1] + 20), 20.0)], 1)
        availability = Intervals(np.arange(2 * n) // 2, start.ravel(), end.ravel(), period_seconds=20.0)
    profiles = ProfileArrays(0.2 + 0.5 * draw.random(n), 50 + 200 * draw.random(n), 50 + 900 * draw.random(n))
    columns = {"x": torch.zeros(n)}
    population = ArrayPopulation(
        columns, torch.arange(n + 1), profiles=profiles, availability=availability, reliability=reliability
    )
    together, apart = (
        rehearse(Waves(12, apart), population, lambda task: Cost(task.steps, 1, 20 + task.client, 11, 97, 53, 9))
        for apart in (False, True)
    )
    assert together == apart
    assert sum(together.committed.values()) > 100
    assert together.lost["deadline"] > 20


def test_a_scheduler_that_goes_by_measured_links_is_refused():
    """No reply of a rehearsal has bytes or seconds: it would tell of clients that never change what they send."""
    population = World([columns(c) for c in range(3)])
    scheduler = ByLink(Synchronous(cohort=3, rounds=2), (900, 200), steps=3)
    with pytest.raises(CompositionError, match="chooses by the bytes and times of replies, which are not rehearsed"):
        rehearse(scheduler, population, lambda task: Cost(1))

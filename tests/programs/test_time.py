"""What schedulers, algorithms and the world may say beyond a plain round: scales, groups, streams, reports, fates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from partwise.aggregators import Median
from partwise.algorithms import FedAvg
from partwise.core.algorithm import Algorithm
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.plan import LocalPlan, ModelLoss
from partwise.core.population import Fate, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import (
    Action,
    After,
    Arrived,
    Commit,
    Deadline,
    Dispatch,
    Event,
    GiveUp,
    Lost,
    Scheduler,
    Started,
    Stop,
)
from partwise.core.update import Update
from partwise.local import SGD
from toy_star import Clients, Log, full_batch, number_model, parabolas, run, star_of


@dataclass(frozen=True)
class Told(Scheduler):
    """Does what a function says of all events so far."""

    acts: Callable[[list[Event]], list[Action]]
    heard: list[Event] = field(default_factory=list)

    def init(self, roster: Any) -> Any:
        return ()

    def step(self, state: Any, event: Event, roster: Any) -> tuple[Any, list[Action]]:
        self.heard.append(event)
        return state, self.acts(self.heard)


def replies(heard: list[Event]) -> list[Any]:
    return [event.reply for event in heard if isinstance(event, Arrived)]


def told(acts: Callable[[list[Event]], list[Action]], population: Clients | None = None, algorithm: Any = None):
    """The scheduler, the star, the final states and the log."""
    scheduler, population = Told(acts), population or parabolas()
    star = star_of(algorithm or FedAvg(full_batch(1), "uniform"), number_model(), population, scheduler)
    states, log = run(star)
    return scheduler, states, log


def two_then(scales: tuple[float, ...]) -> Callable[[list[Event]], list[Action]]:
    def acts(heard: list[Event]) -> list[Action]:
        if isinstance(heard[-1], Started):
            return [Dispatch(0), Dispatch(1)]
        got = replies(heard)
        # Told in the other order than they are reduced in.
        return [Commit(got[::-1], scales[::-1]), Stop()] if len(got) == 2 else []

    return acts


SHIFTED = ((1.0, 3.0), (2.0, 4.0))  # from w = 0, one step of 0.1 moves the clients by 0.2 and 1.2


# Scales


@pytest.mark.parametrize(("scales", "w"), [((), 0.7), ((1.0, 1.0), 0.7), ((0.5, 0.25), (0.5 * 0.2 + 0.25 * 1.2) / 2)])
def test_a_commit_multiplies_each_update_by_its_scale_and_leaves_the_weights(scales, w):
    _, states, log = told(two_then(scales), parabolas(*SHIFTED))
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(w, abs=1e-12)
    assert [record.get("scales", []) for record in log.of("commit")] == [list(scales)]  # in order of client


def test_a_rule_that_needs_each_update_gets_them_scaled():
    def acts(heard: list[Event]) -> list[Action]:
        if isinstance(heard[-1], Started):
            return [Dispatch(c) for c in range(3)]
        got = replies(heard)
        return [Commit(got, [{0: 10.0, 1: 0.5, 2: 1.0}[r.client] for r in got]), Stop()] if len(got) == 3 else []

    population, scheduler = parabolas((1.0, 3.0, 1.0), (2.0, 4.0, 9.0)), Told(acts)  # 0.2, 1.2, 0.9 -> 2, 0.6, 0.9
    star = star_of(
        FedAvg(full_batch(1), "uniform"), number_model(), population, scheduler, aggregators={"model": Median()}
    )
    states, _ = run(star)
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(0.9, abs=1e-12)


def test_a_reply_that_was_accepted_cannot_be_scaled():
    from partwise.core.schedule import Accept

    def acts(heard: list[Event]) -> list[Action]:
        if isinstance(heard[-1], Started):
            return [Dispatch(0)]
        return [Accept(replies(heard)), Commit(replies(heard), [0.5])]

    with pytest.raises(RuntimeError, match=r"^Commit\(scales=...\): replies that were accepted are added up unscaled"):
        told(acts)


# Versions and staleness


def each_by_itself(heard: list[Event]) -> list[Action]:
    """Both clients are asked once, and what comes is committed at once."""
    match heard[-1]:
        case Started():
            return [Dispatch(0), Dispatch(1)]
        case Arrived(_, reply, _):
            return [Commit([reply]), *([Stop()] if len(replies(heard)) == 2 else [])]
    return []


def test_the_version_is_that_of_the_values_that_were_fetched():
    """Client 1's task is slow to come; when it fetches, a commit has been made since it was dispatched."""

    population = parabolas(*SHIFTED)
    population.profiles = {0: Profile(), 1: Profile(downlink=1.0)}
    scheduler, _, log = told(each_by_itself, population)
    assert [(r.client, r.version) for r in replies(scheduler.heard)] == [(0, 0), (1, 1)]
    assert [r["staleness"] for r in log.of("commit")] == [[0], [0]]


def test_a_commit_while_a_client_trains_makes_it_stale():
    population = parabolas(*SHIFTED)
    population.profiles = {0: Profile(1.0), 1: Profile(5.0)}
    _, _, log = told(each_by_itself, population)
    assert [r["staleness"] for r in log.of("commit")] == [[0], [1]]


# Groups, reports, streams


@dataclass(frozen=True)
class Curious(FedAvg):
    """Trains so many steps as its group says, and tells it; the server keeps what it was told, and a rate."""

    def init(self, params, census):
        mine = {"rate": {"rate": torch.tensor(0.25, dtype=torch.float64)}, "diary": {"told": torch.zeros(9)}}
        return {**super().init(params, census), **mine}

    def fetch(self, index, task, own, site):
        return {"model": index, "rate": Whole({"rate": ()})}

    def plan(self, held, index, task, own, site):
        assert held.keys() == {"model", "rate"}
        plan = super().plan(held, index, task, own, site)
        return replace(plan, steps=task.group, optimizer=SGD(float(held["rate"]["rate"])))

    def report(self, held, trained, task, own, site):
        return {"moved": float(trained.change["w"]) + 10 * site.client}

    def commit(self, state, totals, replies):
        for reply in replies:
            state["diary"]["told"][reply.group] = reply.report["moved"]
        return super().commit(state, totals, replies)


def test_group_report_and_streams_travel():
    def acts(heard: list[Event]) -> list[Action]:
        if isinstance(heard[-1], Started):
            return [Dispatch(0, group=1), Dispatch(1, group=2)]
        got = replies(heard)
        return [Commit(got), Stop()] if len(got) == 2 else []

    scheduler, states, log = told(acts, parabolas(*SHIFTED), Curious(full_batch(7), "uniform"))
    # Steps of 0.25: client 0 takes one of 0.25 * 2; client 1 two, to 3 and to 3.75.
    assert [(r.group, r.steps) for r in replies(scheduler.heard)] == [(1, 1), (2, 2)]
    assert states[SERVER].streams["diary"]["told"].tolist()[:3] == [0.0, 0.5, 13.75]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx((0.5 + 3.75) / 2)
    assert not log.of("refused")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rate": Whole({"rate": ()})}, "asked for nothing of `model`"),
        ({"model": Whole({"w": (1,)}), "rate": Whole({"rate": (2,)})}, "asked for ['rate'] of stream 'rate'"),
        ({"model": Whole({"w": (1,)}), "secret": Whole({"x": ()})}, "asked for ['x'] of stream 'secret'"),
    ],
)
def test_streams_that_are_not_the_servers_are_refused(asked, says):
    @dataclass(frozen=True)
    class Asks(Curious):
        def fetch(self, index, task, own, site):
            return asked

    def acts(heard: list[Event]) -> list[Action]:
        return [Dispatch(0, group=1)] if isinstance(heard[-1], Started) else [Stop()]

    scheduler, _, log = told(acts, algorithm=Asks(full_batch(1)))
    assert isinstance(scheduler.heard[-1], Lost)
    assert says in log.of("refused")[0]["reason"]


def test_a_report_that_is_not_finite_is_refused():
    @dataclass(frozen=True)
    class Odd(FedAvg):
        def report(self, held, trained, task, own, site):
            return {"utility": math.nan}

    def acts(heard: list[Event]) -> list[Action]:
        return [Dispatch(0)] if isinstance(heard[-1], Started) else [Stop()]

    _, _, log = told(acts, algorithm=Odd(full_batch(1)))
    assert log.of("refused")[0]["reason"].startswith("a report must be of finite numbers, got {'utility': nan}")


# Plans


def test_a_plan_of_no_steps_is_answered_at_once_without_a_change():
    @dataclass(frozen=True)
    class Idle(FedAvg):
        def plan(self, held, index, task, own, site):
            return replace(super().plan(held, index, task, own, site), steps=0, epochs=0)

    population = parabolas(*SHIFTED)
    population.profiles = dict.fromkeys(range(2), Profile(9.0))
    scheduler, states, log = told(two_then(()), population, Idle(full_batch(5), "uniform"))
    assert [(r["began"], r["fetched"], r["trained"], r["loss"]) for r in log.of("reply")] == [(0.0, 0.0, 0.0, 0.0)] * 2
    assert float(states[SERVER].streams["model"]["w"]) == 0.0
    assert [r.steps for r in replies(scheduler.heard)] == [0, 0]


@dataclass(frozen=True)
class TwoModels(Algorithm):
    """A second number, from 10 on, is trained beside the first one, towards which both are drawn."""

    def plan(self, held, index, task, own, site):
        def loss(params: Mapping[str, torch.Tensor], batch: Any, rng: Any) -> torch.Tensor:
            return ModelLoss(site.model)({"w": params["w"]}, batch, rng) + params["w"] * params["other"]

        other = {"other": torch.tensor([10.0], dtype=torch.float64)}
        return LocalPlan(loss, SGD(0.1), batch_size=0, steps=2, extra=other)

    def finish(self, held, trained, index, task, own, site):
        change = {"w": trained.change["w"] + 100 * trained.change["other"]}
        return {"model": Update(index, change)}, own


def test_extra_values_are_trained_beside_the_held_ones():
    def acts(heard: list[Event]) -> list[Action]:
        if isinstance(heard[-1], Started):
            return [Dispatch(0)]
        return [Commit(replies(heard)), Stop()]

    w, other = 0.0, 10.0
    for _ in range(2):  # a (w - b) + other; w
        w, other = w - 0.1 * (1.0 * (w - 2.0) + other), other - 0.1 * w
    _, states, _ = told(acts, parabolas(*SHIFTED), TwoModels())
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(w + 100 * (other - 10.0), abs=1e-9)


def test_a_scheduler_that_says_nothing_is_told():
    with pytest.raises(CompositionError, match=r"must ask somebody, wait or stop when a run begins, got no action"):
        told(lambda heard: [])


@pytest.mark.parametrize(
    ("first", "scales", "says"),
    [
        (Dispatch(99), (), r"must ask clients of the roster, 0 to \d+, got 99"),
        (Dispatch(0, -2), (), "must ask for a number of steps from 0 on, got -2"),
        (Dispatch(0), (math.nan,), r"must scale by finite numbers from 0 on, got \[nan\]"),
        (Dispatch(0), (-1.0,), r"must scale by finite numbers from 0 on, got \[-1.0\]"),
        (Dispatch(0, 2.0), (), r"must ask by whole numbers, as int\(\) makes them, for steps, got 2\.0"),
        (
            Dispatch(np.int64(0)),
            (),
            r"must ask by whole numbers, as int\(\) makes them, for client, got (np.int64\()?0",
        ),
        (After(math.nan, 0), (), r"must wait for seconds from 0 on, .* got After\(seconds=nan, tag=0\)"),
        (After(-1.0, 0), (), r"must wait for seconds from 0 on, .* got After\(seconds=-1.0, tag=0\)"),
        (Dispatch(0), (1.0, 1.0), "must give each reply of a commit a scale, or none, got '2 for 1'"),
        ("ask everybody", (), "acts by actions as of partwise.core.schedule, got 'ask everybody'"),
    ],
)
def test_actions_that_are_none_are_told(first, scales, says):
    def acts(heard: list[Event]) -> list[Any]:
        return [first] if isinstance(heard[-1], Started) else [Commit(replies(heard), scales), Stop()]

    with pytest.raises(CompositionError, match=says):
        told(acts)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (lambda reply: [reply, reply], r"must commit each reply once, after it arrived, got \[0, 0\]"),
        (lambda reply: [reply._replace(id=7)], r"must commit each reply once, after it arrived, got \[7\]"),
        (lambda reply: [reply.id], r"must commit replies as Arrived brings them, got \[0\]"),
    ],
    ids=["twice", "unknown", "number"],
)
def test_what_did_not_come_is_not_committed(wanted, says):
    def acts(heard: list[Event]) -> list[Any]:
        return [Dispatch(0)] if isinstance(heard[-1], Started) else [Commit(wanted(replies(heard)[0])), Stop()]

    with pytest.raises(CompositionError, match=says):
        told(acts)


# Giving up, and the fates of tasks


@dataclass
class Fates(Clients):
    fates: Mapping[tuple[int, int], Fate] = field(default_factory=dict)
    gone: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # from, to: not there

    def fate(self, client, task):
        return self.fates.get((client, task), Fate())

    def next_available(self, client, now):
        start, end = self.gone.get(client, (math.inf, math.inf))
        return end if start <= now < end else now

    def available_until(self, client, now):
        start, _ = self.gone.get(client, (math.inf, math.inf))
        return start if now < start else math.inf if self.next_available(client, now) == now else now


def fates(pace: float, **more: Any) -> Fates:
    columns = parabolas(*SHIFTED).columns
    return Fates(columns, dict.fromkeys(range(2), Profile(pace)), **more)


def test_who_is_given_up_is_lost_and_what_it_sends_is_not_taken():
    def acts(heard: list[Event]) -> list[Action]:
        match heard[-1]:
            case Started():
                return [Dispatch(0), Dispatch(1), After(3.0, 1)]
            case Deadline():
                return [GiveUp([1]), Commit(replies(heard)), After(9.0, 2)] if len(heard) < 4 else [Stop()]
        return []

    population = parabolas(*SHIFTED)
    population.profiles = {0: Profile(1.0), 1: Profile(5.0)}
    scheduler, states, log = told(acts, population)
    assert [type(e).__name__ for e in scheduler.heard] == ["Started", "Arrived", "Deadline", "Deadline"]
    assert log.of("lost") == [
        {"client": 1, "version": 0, "stage": "deadline", "reason": "is no longer waited for", "id": 1, "began": 0.0}
    ]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(0.2)
    assert not states[SERVER].in_flight
    assert not states[SERVER].inbox


@pytest.mark.parametrize(
    ("fate", "at"),
    [
        (Fate("download", 0.5, 3.0), 3.0),
        (Fate("train", 0.25, 3.0), 0.25 * 4 + 3.0),
        (Fate("upload", 0.5, 3.0), 4 + 3.0),
    ],
)
def test_a_task_may_be_lost_at_every_stage_and_the_server_is_told_later(fate, at):
    def acts(heard: list[Event]) -> list[Action]:
        return [Dispatch(0)] if isinstance(heard[-1], Started) else [Stop()]

    scheduler, _, log = told(acts, fates(4.0, fates={(0, 0): fate}))
    assert scheduler.heard[1:] == [Lost(at, 0, 0, 0.0)]
    assert [(r["stage"], r["reason"]) for r in log.of("lost")] == [(fate.stage, "the client went away")]


def test_a_client_may_be_lost_without_a_word_and_a_reply_may_be_late():
    def acts(heard: list[Event]) -> list[Action]:
        match heard[-1]:
            case Started():
                return [Dispatch(0), Dispatch(1)]
            case Arrived():
                return [After(1000.0, 1)]
            case Deadline():
                return [Stop()]
        return []

    population = fates(4.0, fates={(0, 0): Fate("train", 0.5, math.inf), (1, 1): Fate(late_seconds=7.0)})
    scheduler, _, _ = told(acts, population)
    assert [(type(e).__name__, e.now) for e in scheduler.heard] == [
        ("Started", 0.0),
        ("Arrived", 11.0),
        ("Deadline", 1011.0),
    ]


@pytest.mark.parametrize(
    ("gone", "stage", "at"), [((0.0, 9.0), "download", 0.0), ((2.5, 9.0), "train", 2.5), ((4.5, 9.0), None, 4.0)]
)
def test_a_client_that_ceases_to_be_available_is_lost(gone, stage, at):
    def acts(heard: list[Event]) -> list[Action]:
        return [Dispatch(0)] if isinstance(heard[-1], Started) else [Stop()]

    scheduler, _, log = told(acts, fates(4.0, gone={0: gone}))
    assert scheduler.heard[1].now == at
    assert [r["stage"] for r in log.of("lost")] == ([stage] if stage else [])


def test_a_client_that_is_asked_anew_answers_the_new_task_alone():
    """It had been given up: what it still does for the old task is not taken for the answer to the new one."""

    def acts(heard: list[Event]) -> list[Action]:
        match heard[-1]:
            case Started():
                return [Dispatch(0, steps=4), After(3.0, 1)]
            case Deadline():
                return [GiveUp([0]), Dispatch(0, steps=2)]
            case Arrived(_, reply, _):
                return [Commit([reply]), Stop()]
        return []

    population = parabolas(*SHIFTED)
    population.profiles = {0: Profile(1.0)}
    scheduler, states, _ = told(acts, population)
    assert [(e.now, e.reply.steps, e.began) for e in scheduler.heard if isinstance(e, Arrived)] == [(5.0, 2, 3.0)]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(0.2 + 0.1 * 1.8)


def test_a_run_of_many_fates_is_the_same_when_it_is_played_again():
    def acts(heard: list[Event]) -> list[Action]:
        match heard[-1]:
            case Started():
                return [Dispatch(0), Dispatch(1)]
            case Arrived(_, reply, _):
                more: list[Action] = [Commit([reply], [0.5]), Dispatch(reply.client)]
                return more if len(heard) < 30 else [Stop()]
            case Lost(_, client, _, _):
                return [Dispatch(client)]
        return []

    stages = [Fate(), Fate("train", 0.5), Fate(late_seconds=1.5), Fate("upload"), Fate("download", notice_seconds=1.0)]
    many = {(c, t): stages[(3 * c + t) % 5] for c in range(2) for t in range(99)}

    def played() -> tuple[float, Log]:
        _, states, log = told(acts, fates(0.75, fates=many))
        return float(states[SERVER].streams["model"]["w"]), log

    (one, first), (other, second) = played(), played()
    assert one == other
    assert first.records == second.records
    assert len(first.of("lost")) > 5

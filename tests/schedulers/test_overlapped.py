"""Rounds that overlap: what they take on the clock, against CO2's rule; whom they wait for; and what may go wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch

from partwise.algorithms import CO2, Downlink, FedAvg, Scaffold
from partwise.core.codec import encoded_size
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.population import Fate, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import (
    After,
    Arrived,
    Commit,
    Deadline,
    Discard,
    Dispatch,
    GiveUp,
    Lost,
    ReplyInfo,
    Started,
    Stop,
)
from partwise.core.update import Update
from partwise.programs.messages import Fetch, Reply
from partwise.runtimes import Processes, Simulate
from partwise.runtimes.rehearse import Cost, rehearse
from partwise.schedulers import Overlapped, Synchronous
from partwise.transforms import Quantize, Sign
from toy_federation import LOCAL, play, population, star
from toy_roster import Roster
from toy_slopes import quadratic, steps
from toy_star import Clients, Log, run, server, star_of

STEPS, PACE = 2, 0.5  # a round's training takes 1 s
CENTRES = (0.0, 4.0, 1.5)


def seen(scheduler, profiles, algorithm=None, centres=CENTRES):
    """Of every commit: when, the model, and the bytes so far of client 0, up and down. And the log."""
    model, clients = quadratic(centres, 1.0)
    clients.profiles = dict(enumerate(profiles))
    algorithm = algorithm or FedAvg(steps(0.25, STEPS), "uniform")

    def look(world):
        return world.now, float(server(world).streams["model"]["theta"]), *world.traffic.clients[0]

    _, log = run(star_of(algorithm, model, clients, scheduler), look)
    return log.seen, log


def linked(rate, clients=3):
    return [Profile(PACE, rate, rate)] * clients


def round_bytes():
    """Of a round in the middle, at one client: its task, its request, its part, its reply."""
    rows, _ = seen(Overlapped(6), linked(1e9))
    return sum(rows[3][2:]) - sum(rows[2][2:])


# Time


@pytest.mark.parametrize("ratio", [0.1, 0.9, 0.999])
def test_the_whole_transfer_is_hidden_where_training_takes_as_long(ratio):
    transfer = ratio * STEPS * PACE
    rows, log = seen(Overlapped(6), linked(round_bytes() / transfer))
    times = [row[0] for row in rows]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([STEPS * PACE] * 5, abs=1e-9)
    trained = [record["trained"] for record in log.of("reply") if record["client"] == 0]
    assert [b - a for a, b in pairwise(trained)] == pytest.approx([STEPS * PACE] * 5, abs=1e-9)
    waiting, _ = seen(Synchronous(3, rounds=6), linked(round_bytes() / transfer))
    assert waiting[3][0] - waiting[2][0] == pytest.approx(
        STEPS * PACE + transfer, rel=0.03
    )  # whose replies are shorter


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_what_is_not_hidden_is_added(ratio):
    """max(tau t_c, comm): training is hidden then. The last reply waits for nobody, and need not say when it left."""
    transfer = ratio * STEPS * PACE
    rate = round_bytes() / transfer
    rows, _ = seen(Overlapped(6), linked(rate))
    times = [row[0] for row in rows]
    sent = Update(Whole({"theta": (1,)}), {"theta": torch.zeros(1, dtype=torch.float64)}, 1.0)
    reply = Reply(9, 2, 1, 0.5, {"model": sent}, 1.5, 2.5, has_state=False)
    last = STEPS * PACE - (encoded_size(reply._replace(turns=(1.5, 2.5))) - encoded_size(reply)) / rate
    assert [b - a for a, b in pairwise(times)] == pytest.approx([transfer] * 4 + [last], rel=1e-9)


def test_clients_that_differ_wait_for_the_slowest_reply_alone():
    """begin(i, t + 1) = max(begin(i, t) + work_i, max_j(begin(j, t) + up_j) + down_i), in plain numbers."""
    profiles = [Profile(0.5, 900.0, 3000.0), Profile(0.1, 200.0, 500.0), Profile(0.3, 5000.0, 400.0)]
    _, log = seen(Overlapped(7), profiles)
    rows, _ = seen(Overlapped(7), linked(1e9))
    up, down = (rows[3][side] - rows[2][side] for side in (2, 3))
    theirs = [[r for r in log.of("reply") if r["client"] == i] for i in range(3)]
    reply = up - encoded_size(Fetch(9, Whole({"theta": (1,)})))  # all that a client sends in a round
    work = [STEPS * p.seconds_per_step for p in profiles]
    begin = [[theirs[i][0]["fetched"] for i in range(3)]]
    begin.append([begin[0][i] + work[i] for i in range(3)])
    for _ in range(5):
        known = max(begin[-1][j] + reply / p.uplink for j, p in enumerate(profiles))
        there = [known + down / p.downlink + (up - reply) / p.uplink for p in profiles]
        begin.append([max(begin[-1][i] + work[i], there[i]) for i in range(3)])
    for i in range(3):
        assert [r["trained"] for r in theirs[i]] == pytest.approx([row[i] + work[i] for row in begin], abs=1e-9)


# Values


def co2(rounds, *, beta, phi, gap, gamma=0.25, alpha=1.0):
    """The paper's algorithm in plain numbers: one worker's view, with the average of the round before under way."""
    x, before, m, pace, sent, path = 1.0, 1.0, 0.0, 0.0, None, []
    for _ in range(rounds):
        ends = []
        for c in CENTRES:
            y = x
            for _ in range(STEPS):
                y -= gamma * (y - c)
            ends.append(y)
        after = x
        if sent is not None:
            start, mean = sent
            pace = 0.9 * pace + 0.1 * abs(x - before)
            lag = 1 + abs(x - before) / pace if gap == "moved" and pace else 1.0
            m = max(-phi, min(phi, beta * m + (start - mean) / (gamma * lag)))
            after = x - alpha * gamma * m
        sent = x, sum(ends) / len(ends)
        before, x = x, after
        path.append(x)
    return path


SETTINGS = [
    {"beta": 0.0, "phi": math.inf, "gap": "constant"},
    {"beta": 0.5, "phi": math.inf, "gap": "moved"},
    {"beta": 0.6, "phi": 0.8, "gap": "moved"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "gap", "clipped"])
@pytest.mark.parametrize("rate", [1e9, 100.0], ids=["hidden", "thin"])
def test_models_are_those_of_co2(settings, rate):
    phi = settings["phi"]
    part = CO2(
        FedAvg(steps(0.25, STEPS), "uniform"), 0.25, settings["beta"], 1.0, clip=phi, gap=settings["gap"], delay=0
    )
    rows, log = seen(Overlapped(8), linked(rate), part)
    expected = co2(9, **settings)  # round 0 has nothing to apply: the commit of round t makes x of round t + 2
    assert [row[1] for row in rows] == pytest.approx(expected[1:], abs=1e-12)
    assert [set(record["staleness"]) for record in log.of("commit")] == [{0}, *[{1}] * 7]
    kept, _ = seen(Synchronous(3, rounds=9), linked(rate), replace(part, delay=1))
    assert [row[1] for row in kept] == pytest.approx(expected, abs=1e-12)


def test_without_delay_it_is_slowmo_and_local_sgd():
    """Two quadratics, x -> x - gamma m with m = beta m + D / gamma; for beta = 0 the mean of the ends."""
    for beta in (0.0, 0.5):
        x, m, expected = 1.0, 0.0, []
        for _ in range(5):
            ends = [c + (x - c) * 0.75**STEPS for c in CENTRES]
            m = beta * m + (x - sum(ends) / 3) / 0.25
            x -= 0.25 * m
            expected.append(x)
        part = CO2(FedAvg(steps(0.25, STEPS), "uniform"), 0.25, beta, clip=math.inf, gap="constant", delay=0)
        rows, _ = seen(Synchronous(3, rounds=5), linked(1e6), part)
        assert [row[1] for row in rows] == pytest.approx(expected, abs=1e-12)


@dataclass(frozen=True)
class Noted(FedAvg):
    """Keeps what each task began from: version -> values of every client."""

    began: dict[int, list[dict[str, torch.Tensor]]] = field(default_factory=dict)

    def finish(self, held, trained, index, task, own, site):
        self.began.setdefault(task.version, []).append({name: t.clone() for name, t in held["model"].items()})
        return super().finish(held, trained, index, task, own, site)


def test_differences_are_added_to_what_the_client_held_when_it_asked_for_them():
    """Clients ask for the differences to their shadow while they are at a task that will change the shadow."""
    algorithm = Noted(LOCAL)
    eight = Quantize(8, scale_by="max", rounding="nearest")
    people = population()
    people.profiles = {i: Profile(0.1 + 0.01 * i, 1e5, 1e5) for i in range(7)}
    of = star("fedavg", population=people, algorithm=Downlink(algorithm, eight), scheduler=Overlapped(6), seed=5)
    log = Log(lambda world: {name: t.clone() for name, t in server(world).streams["shadow"].items()})
    Simulate().run(of.programs(), of.population, log)
    assert {version: len(of) for version, of in algorithm.began.items()} == {0: 14, 1: 7, 2: 7, 3: 7, 4: 7}
    for version, held in algorithm.began.items():
        shadow = log.seen[version - 1] if version else of.initial()
        assert all(torch.equal(values[name], t) for values in held for name, t in shadow.items())


def test_worker_processes_end_with_the_bits_of_the_simulator():
    parts = {"scheduler": Overlapped(5), "seed": 5, "algorithm": Downlink(Scaffold(LOCAL), Sign())}
    one, log = play(Simulate(), star("fedavg", **parts))
    assert not log.of("lost")
    assert play(Processes(workers=2), star("fedavg", **parts))[0] == one


# What may go wrong


@dataclass
class Fates(Clients):
    """Clients some of whose tasks are lost."""

    fates: Mapping[int, Fate] = field(default_factory=dict)

    def fate(self, client, task):
        return self.fates.get(task, Fate())


@pytest.mark.parametrize("stage", ["download", "train", "upload"])
@pytest.mark.parametrize("task", [1, 4, 7])
def test_a_lost_task_costs_its_round_a_reply_and_no_more(stage, task):
    """Tasks are numbered round by round, two at once for client 0 and 1, in the first two rounds."""
    model, clients = quadratic((0.0, 4.0), 1.0)
    people = Fates(clients.columns, dict(enumerate(linked(800.0, 2))), {task: Fate(stage, 0.5, 0.3)})
    states, log = run(star_of(FedAvg(steps(0.25, STEPS), "uniform"), model, people, Overlapped(6)))
    assert [(r["id"], r["stage"]) for r in log.of("lost")] == [(task, stage)]
    assert sorted(r["id"] for r in log.of("reply")) == [i for i in range(12) if i != task]
    assert [r["replies"] for r in log.of("commit")] == [1 if t == task // 2 else 2 for t in range(6)]
    assert not states[SERVER].in_flight
    assert not states[SERVER].inbox


def reply(id, client):
    return ReplyInfo(id, client, 0, 1, 1)


def dispatched(actions):
    return [(a.client, a.is_followed) for a in actions if isinstance(a, Dispatch)]


def test_two_rounds_are_asked_and_then_one_for_each_that_is_closed():
    part, roster = Overlapped(3, steps=4, deadline_seconds=9.0), Roster(2)
    state, actions = part.step(part.init(roster), Started(0.0), roster)
    assert dispatched(actions) == [(0, True), (1, True)] * 2
    assert actions[-1] == After(9.0, 0)
    assert {a.steps for a in actions if isinstance(a, Dispatch)} == {4}
    state, actions = part.step(state, Arrived(1.0, reply(0, 0), 0.0), roster)
    assert actions == []
    state, actions = part.step(state, Arrived(2.0, reply(1, 1), 0.0), roster)
    assert actions == [Commit((reply(0, 0), reply(1, 1))), Dispatch(0, 4), Dispatch(1, 4)]
    state, actions = part.step(state, Lost(3.0, 1, 3, 0.0), roster)
    state, actions = part.step(state, Arrived(3.0, reply(2, 0), 0.0), roster)
    assert actions == [Commit((reply(2, 0),))]
    state, actions = part.step(state, Arrived(3.5, reply(9, 0), 1.0), roster)
    assert actions == [Discard((reply(9, 0),))]  # what was asked then is over
    state, actions = part.step(state, Arrived(4.0, reply(4, 0), 2.0), roster)
    assert actions == []
    state, actions = part.step(state, Arrived(5.0, reply(5, 1), 2.0), roster)
    assert actions == [Commit((reply(4, 0), reply(5, 1))), Stop()]


def test_who_is_late_is_given_up_with_all_that_it_was_asked():
    part, roster = Overlapped(4, deadline_seconds=9.0), Roster(2)
    state, _ = part.step(part.init(roster), Started(0.0), roster)
    state, _ = part.step(state, Arrived(1.0, reply(0, 0), 0.0), roster)
    state, actions = part.step(state, Deadline(9.0, 0), roster)
    assert actions == [
        GiveUp((1,)),
        Commit((reply(0, 0),)),
        Dispatch(0, is_followed=True),
        Dispatch(1, is_followed=True),
        After(9.0, 0),
    ]
    state, actions = part.step(state, Arrived(10.0, reply(2, 0), 0.0), roster)
    assert dispatched(actions) == [(0, False), (1, False)]  # round 1 was left to client 0
    state, actions = part.step(state, Deadline(18.0, 0), roster)
    assert actions == [After(1.0, 0)]  # round 2 is waited for since 10


def test_rounds_in_vain_end_the_run():
    part, roster = Overlapped(5, patience=2, min_replies=2), Roster(2)
    state, _ = part.step(part.init(roster), Started(0.0), roster)
    for id, client in ((0, 0), (1, 0), (2, 1)):
        state, actions = part.step(state, Lost(1.0, client, id, 0.0), roster)
    assert dispatched(actions) == [(0, True), (1, True)]
    state, actions = part.step(state, Arrived(1.0, reply(3, 1), 0.0), roster)
    assert actions[0] == Discard((reply(3, 1),))
    (stop,) = actions[1:]
    assert stop.reason.startswith("2 rounds in a row committed nothing: each had fewer than min_replies=2 answers")


def test_it_refuses():
    for make, message in (
        (lambda: Overlapped(0), r"Overlapped\(rounds=0\): must be at least 1, got 0"),
        (lambda: Overlapped(deadline_seconds=math.inf), r"deadline_seconds=inf\): must be above 0 and finite, got inf"),
        (lambda: Overlapped(min_replies=4).init(Roster(3)), r"at most the population, got a population of 3"),
        (lambda: CO2(FedAvg(), 0.1, delay=2), r"CO2\(delay=2\): must be 0 or 1, got 2\. 0 behind Overlapped\."),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    _, clients = quadratic(CENTRES, 1.0)
    with pytest.raises(CompositionError, match="asks clients for the next task while they are at one, which is not re"):
        rehearse(Overlapped(4), clients, lambda task: Cost(2))

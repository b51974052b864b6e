"""The star: server and clients as programs, on the simulator."""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg, FedSubAvg, Scaffold
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError, DivergedError, ProtocolError
from partwise.core.index import Joint, Whole
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Profile
from partwise.core.program import SERVER, Message
from partwise.core.sampled import Sampled
from partwise.core.seeded import Seeded
from partwise.core.transform import chain
from partwise.core.update import Update, scale
from partwise.local import SGD, LocalTraining
from partwise.programs.messages import Fetch, Reply
from partwise.programs.schema import check_from_client
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Adam, ServerSGD, Yogi
from toy_star import (
    Clients,
    Cohorts,
    Log,
    everybody,
    full_batch,
    number_model,
    parabolas,
    run,
    server,
    star_of,
)

# Parts of the test's own


@dataclass(frozen=True)
class Times:
    """Scales an update, and counts how often."""

    factor: float

    def init(self, params):
        return 0

    def apply(self, update, state, rng):
        return scale(update, self.factor), state + 1


@dataclass(frozen=True)
class Median:
    needs: ClassVar = "each"

    def init(self, params, census):
        return ()

    def reduce(self, got, state, params, replies=()):
        ordered = sorted(got, key=lambda u: float(u.values()["w"]))
        return ordered[len(ordered) // 2], state


@dataclass(frozen=True)
class TwoMessages:
    """First everybody draws a mask and tells it, then sends its update plus the mask; the sum is freed of them."""

    silent: tuple[int, ...] = ()
    reveals: ClassVar = "sum"
    limit: ClassVar = None
    exchanges: ClassVar = True
    patience_seconds: ClassVar = 5.0

    def server(self, cohort, params, session):
        hello = yield dict.fromkeys(cohort, "mask?")
        sealed = yield dict.fromkeys(hello, "update?")
        total = sum_updates([sealed[c] for c in sorted(sealed)], params)
        for c in sealed:
            for name, value in total.value.items():
                value -= hello[c] * total.weight[name].new_ones(()) * sealed[c].weight
        return total

    def client(self, update, params, seat):
        yield
        mask = float(update.weight) * 10 + 3
        yield mask
        yield type(update)(update.index, {n: v + mask for n, v in update.values().items()}, update.weight)


# What fits together


def make(algorithm=None, **more):
    population = more.pop("population", None) or parabolas()
    scheduler = more.pop("scheduler", None) or everybody(population, 1)
    return star_of(algorithm or FedAvg(full_batch(5), "uniform"), number_model(), population, scheduler, **more)


def test_compositions_that_do_not_fit():
    population = parabolas()
    with pytest.raises(
        CompositionError, match=r"Median\(\): needs each update of stream 'model', but TwoMessages\(.*\) reveals"
    ):
        Star(
            algorithm=FedAvg(),
            scheduler=Synchronous(cohort=2),
            model=number_model(),
            population=population,
            channel=TwoMessages(),
            aggregators={"model": Median()},
        )
    for what in ("client_chain", "server_chain"):
        side = what.removesuffix("_chain")
        message = (
            rf"FedAvg: has the streams \['model'\], got a {side} chain for \['control'\]\. Name one of its streams"
        )
        with pytest.raises(CompositionError, match=message):
            make(**{what: {"control": Times(2.0)}})
    with pytest.raises(CompositionError, match=r"got an? aggregator for \['gate'\]"):
        make(aggregators={"gate": Median()})
    for optimizer in (Adam(), Yogi(lazy=False), chain(Times(2.0), ServerSGD(momentum=0.9))):
        make(server_chain={"model": optimizer})
        with pytest.raises(CompositionError, match=r"keeps something of the model's own size from the start.*Put it"):
            make(client_chain={"model": optimizer})
    with pytest.raises(ValueError, match=r"Star\(on_refused='wait'\): must be 'skip' or 'stop'"):
        make(on_refused="wait")


def test_programs_are_a_server_and_its_clients():
    programs = make().programs()
    assert list(programs) == [SERVER, 0, 1]
    assert len(programs) == 3
    assert programs[0] is programs[1] is not programs[SERVER]


def test_every_stream_has_an_aggregator_and_the_users_wins():
    star = make(Scaffold(full_batch(1)), aggregators={"model": Median()})
    assert star.all_aggregators().keys() == {"model", "control"}
    assert star.all_aggregators()["model"] == Median()
    assert star.all_aggregators()["control"] == Scaffold(full_batch(1)).aggregators()["control"]


# Chains, aggregators and channels take part


def test_chains_act_on_their_side():
    """Local ends are 0 and 3.32772; the client chain doubles, the server chain takes a quarter."""
    star = make(client_chain={"model": Times(2.0)}, server_chain={"model": Times(0.25)})
    states, _ = run(star)
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(1.66386 * 2 / 4, abs=1e-12)
    assert states[SERVER].chains == {"model": 1}
    assert [states[i].chains for i in (0, 1)] == [{"model": 1}] * 2


def test_an_aggregator_may_ask_for_each_update():
    population = parabolas((1.0, 3.0, 2.0), (0.0, 4.0, -3.0))
    star = make(population=population, aggregators={"model": Median()}, scheduler=everybody(population, 1))
    states, _ = run(star)
    assert float(states[SERVER].streams["model"]["w"]) == 0.0  # of 0, 3.3 and a negative one


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_channel_of_two_messages_gives_the_plain_sum(rounds):
    population = parabolas(sizes=(2, 5))
    algorithm, scheduler = FedAvg(full_batch(4)), everybody(population, rounds)
    plain, _ = run(make(algorithm, population=population, scheduler=scheduler))
    star = Star(algorithm, scheduler, number_model(), population, TwoMessages())
    masked, log = run(star)
    torch.testing.assert_close(
        masked[SERVER].streams["model"]["w"], plain[SERVER].streams["model"]["w"], rtol=0, atol=1e-12
    )
    assert len(log.of("commit")) == rounds
    assert all(len(masked[i].kept) <= 1 for i in (0, 1))  # all but the last were released before the run ended


# What may go wrong


def test_a_client_that_fails_is_lost_with_its_reason():
    columns = [*parabolas().columns, {"a": torch.ones(2, dtype=torch.float64)}]  # b is missing
    population = Clients(columns)
    states, log = run(make(population=population))
    (lost,) = log.of("lost")
    assert (lost["client"], lost["version"], lost["stage"]) == (2, 0, "train")
    assert "KeyError" in lost["reason"]
    assert log.of("commit")[0]["clients"] == [0, 1]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(1.66386, abs=1e-12)
    assert 2 not in states  # nothing is under way, and it keeps nothing


def test_a_client_without_examples_is_lost():
    none = torch.zeros(0, dtype=torch.float64)
    population = Clients([*parabolas().columns, {"a": none, "b": none}])
    _, log = run(make(population=population))
    assert "client 2: has no examples to train on. Leave it out of the population." in log.of("lost")[0]["reason"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(bad):
    population = parabolas((1.0, 3.0, 2.0), (0.0, 4.0, bad))
    states, log = run(make(population=population))
    (refused,) = log.of("refused")
    assert refused["client"] == 2
    assert "must be finite, got NaN or infinity. Lower the client's learning rate" in refused["reason"]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(1.66386, abs=1e-12)
    stopping = make(population=population, on_refused="stop", scheduler=everybody(population, 2))
    reason = Simulate().run(stopping.programs(), population, Log())[1]
    assert reason.startswith("client 2 was refused: ")


def test_an_index_that_does_not_fit_is_refused():
    @dataclass(frozen=True)
    class Foreign(FedAvg):
        def select(self, task, own, site):
            return Whole({"v": (3,)}) if site.client == 1 else super().select(task, own, site)

    states, log = run(make(Foreign(full_batch(5), "uniform")))
    (refused,) = log.of("refused")
    assert refused["client"] == 1
    assert "asked for ['v'] of stream 'model', with shapes that are not the server's" in refused["reason"]
    assert log.of("commit")[0]["clients"] == [0]
    assert not states[SERVER].in_flight


def test_an_index_that_cannot_be_gathered_is_refused():
    """With the server's shapes, as a peer may make it up: in floats, of which a draw has no bits."""

    @dataclass(frozen=True)
    class Foreign(FedAvg):
        def fetch(self, index, task, own, site):
            odd = Sampled(Whole({n: tuple(map(float, s)) for n, s in index.shapes.items()}), 1, 0.5)
            return {"model": odd if site.client == 1 else index}

    states, log = run(make(Foreign(full_batch(5), "uniform")))
    (refused,) = log.of("refused")
    assert (refused["client"], "asked for what cannot be gathered: " in refused["reason"]) == (1, True)
    assert log.of("commit")[0]["clients"] == [0]
    assert not states[SERVER].in_flight


def test_nobody_fetches_along_directions():
    """A few bytes may ask for any number of them; an index over them holds no coordinates."""
    whole = Whole({"w": (3,)})
    along = Seeded(whole, 1, {"w": 10**13})
    for index in (along, Joint((along,)), Sampled(along, 1, 0.5), Seeded(along, 1, {"w": 2})):
        for fetch in (Fetch(1, index, None), Fetch(1, whole, {"model": index})):
            with pytest.raises(ProtocolError, match=r"must be an index of coordinates, got Seeded"):
                check_from_client(fetch)
    value = {"w": torch.zeros(2)}
    check_from_client(Reply(1, 1, 1, 0.0, {"model": Update(Seeded(whole, 1, {"w": 2}), value)}))
    with pytest.raises(ProtocolError, match=r"must be an index of coordinates, got Seeded"):
        check_from_client(Reply(1, 1, 1, 0.0, {"model": Update(Seeded(along, 1, {"w": 2}), value)}))


def test_an_aggregate_that_is_not_finite_ends_the_run():
    star = make(server_chain={"model": Times(float("inf"))})
    with pytest.raises(DivergedError, match=r"version 0: the aggregate of stream 'model' is no longer finite"):
        run(star)


@dataclass(frozen=True)
class Doubled(Times):
    """Makes every value twice as long."""

    def apply(self, update, state, rng):
        return replace(update, value={n: v.repeat(2) for n, v in update.values().items()}), state + 1


def test_an_aggregate_of_another_shape_is_not_committed():
    _, log = run(make(server_chain={"model": Doubled(1.0)}))
    (skipped,) = log.of("skipped")
    assert skipped["reason"].startswith(
        "Doubled(factor=1.0): must give an update of the server's model, got: Update('w'):"
    )
    assert not log.of("commit")


def test_messages_nobody_asked_for_are_ignored():
    star = make()
    program = star.programs()[SERVER]
    node = program.init(SERVER)
    for body in (Fetch(7, Whole({"w": (1,)})), "hello"):
        node, effects = program.step(node, Message(0.0, SERVER, 1, body))
        assert effects == []


def test_a_late_reply_does_not_join_a_round_it_was_not_asked_in():
    population = parabolas((1.0, 3.0, 0.5), (0.0, 4.0, -3.0))
    population.profiles = {1: Profile(seconds_per_step=2.0), 0: Profile(1.0), 2: Profile(1.0)}
    scheduler = Synchronous(cohort=3, rounds=1, deadline_seconds=7.0)
    star = make(population=population, scheduler=scheduler)
    states, log = run(star)
    assert log.of("commit")[0]["clients"] == [0, 2]
    ends = [0.0, -3 * (1 - 0.95**5)]
    assert float(states[SERVER].streams["model"]["w"]) == pytest.approx(sum(ends) / 2, abs=1e-12)


# Order, repetition, seeds


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.out(self.items(ids).mean(1))


def recommender():
    return Model(Small, CrossEntropy(), inputs=("ids",), tables={"items.weight": ("ids",)})


def readers(paces=()):
    rng = torch.Generator().manual_seed(1)
    columns = [
        {"ids": torch.randint(9, (n, 3), generator=rng), "y": torch.randint(2, (n,), generator=rng)}
        for n in (2, 5, 3, 4, 2, 6)
    ]
    return Clients(columns, {i: Profile(seconds_per_step=p) for i, p in enumerate(paces)})


def played(paces=(), seed=0, algorithm=None):
    algorithm = algorithm or FedSubAvg("count", LocalTraining(SGD(0.5), batch_size=2), "size_fixed")
    star = star_of(algorithm, recommender(), readers(paces), Synchronous(cohort=4, rounds=3), seed=seed)
    states, log = run(star)
    return states[SERVER].streams["model"], log


def test_two_runs_are_bit_equal_and_seeds_differ():
    one, again, other = played()[0], played()[0], played(seed=1)[0]
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not torch.equal(one["items.weight"], other["items.weight"])


def test_the_order_of_arrival_changes_nothing():
    paces = [0.1, 0.5, 0.3, 0.9, 0.2, 0.7]
    one, log = played(paces)
    random.Random(0).shuffle(paces)
    other, another_log = played(paces)
    assert [r["client"] for r in log.of("reply")] != [r["client"] for r in another_log.of("reply")]
    assert all(torch.equal(one[n], other[n]) for n in one)


# What the server knows


def test_a_run_that_is_over_keeps_no_data():
    """Without a full collection: many runs in one process would keep the data of several."""
    gc.collect()
    gc.disable()
    try:
        population = readers()
        star = star_of(FedSubAvg("heat"), recommender(), population, everybody(population, 2))
        states, log = run(star)
        assert log.of("commit")
        kept = weakref.ref(population)
        del population, star, states, log
        assert kept() is None
    finally:
        gc.enable()


def test_census_counts_holders_and_weights():
    algorithm = FedSubAvg("heat", weighting="size_fixed")
    population = readers()
    star = star_of(algorithm, recommender(), population, Cohorts(()))
    counts = star.census.counts
    heat, weight = [0] * 9, [0.0] * 9
    for columns in population.columns:
        for row in set(columns["ids"].flatten().tolist()):
            heat[row] += 1
            weight[row] += len(columns["y"])
    assert counts.heat["items.weight"].flatten().tolist() == heat
    assert counts.weight["items.weight"].flatten().tolist() == weight
    assert counts.heat["out.bias"].tolist() == [6]
    assert counts.total_weight == 22
    assert star.census.num_clients == 6


def test_rows_travel_both_ways():
    """Down: index, values; up: values. Neither depends on the size of the table."""
    sent = []
    for rows in (40, 4000):
        model = Model(
            lambda rows=rows: nn.Embedding(rows, 8), lambda out, batch: out.sum((1, 2)), ("ids",), {"weight": ("ids",)}
        )
        population = Clients([{"ids": torch.tensor([[1, 5, 7]])}])
        star = star_of(FedSubAvg("count", full_batch(1)), model, population, Cohorts(((0,),)))
        sent.append(run(star, lambda world: (world.traffic.uplink, world.traffic.downlink))[1].seen[0])
    assert abs(sent[0][0] - sent[1][0]) < 24  # longer numbers in the shapes
    assert abs(sent[0][1] - sent[1][1]) < 24
    assert 3 * 8 * 4 < sent[0][0] < 3 * 8 * 4 + 400


def test_records_tell_the_round():
    population = parabolas(sizes=(1, 3))
    _, log = run(make(FedAvg(full_batch(5)), population=population, scheduler=everybody(population, 2)), server)
    replies, commits = log.of("reply"), log.of("commit")
    assert [(r["client"], r["steps"], r["examples"], r["staleness"]) for r in replies[:2]] == [
        (0, 5, 1, 0),
        (1, 5, 3, 0),
    ]
    assert [c["version"] for c in commits] == [1, 2]
    losses = [r["loss"] * r["examples"] for r in replies[:2]]
    assert commits[0]["loss"] == pytest.approx(sum(losses) / 4)


# What is kept of clients that were asked


def test_clients_with_nothing_to_keep_are_not_kept_and_the_server_remembers_none_of_them():
    population = parabolas((1.0, 3.0, 2.0, 5.0), (0.0, 4.0, 1.0, 2.0))
    states, log = run(make(population=population, scheduler=Cohorts(((0, 1), (2, 3), (1, 2)))), dict_sizes)
    assert set(states) == {SERVER}
    # A round is on record once the next has been asked for: the attempts are that one's.
    assert log.seen == [(2, 0, 0, 4), (2, 0, 0, 4), (0, 0, 0, 4)]  # attempts, told, nodes; traffic knows all


def dict_sizes(world):
    node = server(world)
    return len(node.attempts), len(node.told), len(world.nodes.keys() - {SERVER}), len(world.traffic.clients)


def test_clients_with_a_state_are_kept_and_told_what_was_committed():
    population = parabolas((1.0, 3.0, 2.0), (0.0, 4.0, 1.0))
    algorithm = Scaffold(full_batch(2))
    states, _ = run(make(algorithm=algorithm, population=population, scheduler=Cohorts(((0, 1), (1, 2)))))
    assert set(states) == {SERVER, 0, 1, 2}
    assert states[SERVER].told == {0: (0,), 1: (2,), 2: (3,)}  # 1 was told of task 1, and has answered


def test_a_chain_with_a_state_keeps_its_client():
    states, _ = run(make(client_chain={"model": Times(2.0)}))
    assert {c: states[c].chains for c in states if c != SERVER} == {0: {"model": 1}, 1: {"model": 1}}


class Endless(Clients):
    """A hundred million clients, made when they are asked for, and who was asked for."""

    def __init__(self) -> None:
        super().__init__(parabolas().columns)
        self.met: set[int] = set()

    @property
    def clients(self):
        return range(10**8)

    def data(self, client):
        self.met.add(client)
        return super().data(client % 2)

    def profile(self, client, now: float = 0.0):
        self.met.add(client)
        return Profile(0.1 + client % 3)


def test_a_round_looks_at_nobody_but_its_cohort():
    population = Endless()
    star = make(population=population, scheduler=Synchronous(cohort=7, rounds=4), seed=2)
    tracemalloc.start()
    try:
        states, log = run(star)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    asked = {fields["client"] for fields in log.of("reply")}
    assert population.met == asked | {0}  # of the first client, the star has looked at what is told
    assert len(asked) == 28
    assert peak < 5_000_000
    assert set(states) == {SERVER}

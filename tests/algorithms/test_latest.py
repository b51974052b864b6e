"""FedLaAvg in its three forms, against printed numbers and plain loops."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAvg, FedLaAvg, LocalOnly, Scaffold
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.latest import Latest
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Census, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import Commit
from partwise.core.update import Update
from partwise.local import SGD, AdamW, LocalTraining
from partwise.schedulers import Synchronous
from partwise.testing import check_algorithm
from toy_rows import HESSIANS, LOPSIDED, SLOPES, SUBMODELS, minimiser, problem
from toy_star import (
    Clients,
    Cohorts,
    Parabola,
    Recorded,
    everybody,
    full_batch,
    number_model,
    parabolas,
    run,
    server,
    star_of,
)

KEEPERS = ("client", "server")
A, B, SIZES = (1.0, 3.0, 0.5, 2.0), (0.0, 4.0, -3.0, 1.5), (1, 4, 2, 2)
COHORTS = ((0, 2), (1,), (0, 1, 3), (2, 3), (0,), (0,), (1, 2), (3,), (1, 3))


def path(algorithm, population, cohorts, model=None):
    """w after each round."""
    star = star_of(algorithm, model or number_model(), population, Cohorts(tuple(cohorts)))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert not log.of("lost")
    assert not log.of("skipped")
    return log.seen


def squares():
    """(x - e)² with e = 0 and 10."""
    return parabolas((2.0, 2.0), (0.0, 10.0))


def memories(world, clients):
    """Each client's G_i once its pending changes count."""
    found = []
    for i in clients:
        node = world.state(i)
        own = None if node is None else node.own
        pending = [] if own is None else own.pending.values()
        start = 0.0 if own is None or not own.value else float(own.value["w"])
        found.append(start + sum(float(change["w"]) for change in pending))
    return found


# Printed numbers


@pytest.mark.parametrize("memory", KEEPERS)
def test_printed_trace(memory):
    cohorts = [(0,)] * 3 + [(1,)] + [(0,)] * 3 + [(1,)]
    expected = [0, 0, 0, 0.5, 0.975, 1.42625, 1.8549375, 2.190878125]
    assert path(FedLaAvg(full_batch(1, 0.05), memory), squares(), cohorts) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("memory", KEEPERS)
def test_it_converges_to_the_optimum(memory):
    cohorts = ([(0,)] * 3 + [(1,)]) * 60
    assert path(FedLaAvg(full_batch(1, 0.05), memory), squares(), cohorts)[-1] == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize(("lr", "printed"), [(0.1, 3.3875338753), (0.001, 2.5075125125)])
def test_what_federated_averaging_converges_to(lr, printed):
    """The closed form is the fixed point of a cycle of three rounds with client 0 and one with client 1."""
    first, last, t1, t2 = 0.0, 10.0, 3, 1
    shrink = 1 - 2 * lr
    limit = (shrink**t2 * (first - last) + last - first * shrink ** (t1 + t2)) / (1 - shrink ** (t1 + t2))
    assert limit == pytest.approx(printed, abs=5e-11)
    cycle = [(0,)] * t1 + [(1,)] * t2
    again = path(FedAvg(full_batch(1, lr), "uniform"), squares(), cycle, number_model(limit))
    assert again[-1] == pytest.approx(limit, abs=1e-12)
    elsewhere = path(FedAvg(full_batch(1, lr), "uniform"), squares(), cycle, number_model(limit + 1))
    assert elsewhere[-1] - limit == pytest.approx(shrink**4, abs=1e-12)  # so it is a limit


# Plain loops


def oracle(cohorts, *, lr, steps, decay=1.0, scaled=True, idle=0):
    """FedLaAvg on the parabolas A, B in plain floats: w after each round."""
    n, w, kept, found = sum(SIZES), 0.0, [0.0] * len(A), []
    for round, cohort in enumerate(cohorts):
        rate = lr * decay**round
        for i in cohort:
            v, total = w, 0.0
            for _ in range(steps):
                slope = A[i] * (v - B[i]) * (len(A) * SIZES[i] / n if scaled else 1.0)
                total += slope
                v -= rate * slope
            kept[i] = total
        if round >= idle:
            w -= rate * sum(kept) / len(A)
        found.append(w)
    return found


@pytest.mark.parametrize("memory", KEEPERS)
@pytest.mark.parametrize("case", ["plain", "uniform", "decay", "idle"])
def test_equals_the_plain_loop(memory, case):
    lr, decay = 0.03, 0.7 if case == "decay" else 1.0
    local = LocalTraining(SGD(lr), batch_size=0, steps=3, lr_decay=decay)
    weights, idle = "uniform" if case == "uniform" else "samples", 2 if case == "idle" else 0
    algorithm = FedLaAvg(local, memory, weights, num_non_update_rounds=idle)
    ours = path(algorithm, parabolas(A, B, SIZES), COHORTS)
    theirs = oracle(COHORTS, lr=lr, steps=3, decay=decay, scaled=case != "uniform", idle=idle)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert ours != pytest.approx(oracle(COHORTS, lr=lr, steps=3), abs=1e-3) or case == "plain"


@pytest.mark.parametrize("memory", KEEPERS)
def test_everybody_every_round_is_federated_averaging(memory):
    """With the same scaling of the losses, here in the curvature, and uniform weights."""
    scaled = [a * len(A) * n / sum(SIZES) for a, n in zip(A, SIZES, strict=True)]
    rounds = [tuple(range(len(A)))] * 6
    theirs = path(FedAvg(full_batch(4, 0.05), "uniform"), parabolas(scaled, B), rounds)
    ours = path(FedLaAvg(full_batch(4, 0.05), memory), parabolas(A, B, SIZES), rounds)
    assert ours == pytest.approx(theirs, abs=1e-12)
    unscaled = path(FedLaAvg(full_batch(4, 0.05), memory, "uniform"), parabolas(A, B, SIZES), rounds)
    assert unscaled == pytest.approx(path(FedAvg(full_batch(4, 0.05), "uniform"), parabolas(A, B), rounds), abs=1e-12)


def test_decay_and_bound_scale_with_the_loss():
    """Weight decay is of the parameters, not of the loss; a bound is of the scaled gradient."""
    local, n = LocalTraining(SGD(0.05, weight_decay=0.3), batch_size=0, steps=2, max_norm=1.5), sum(SIZES)
    w, kept, expected = 1.0, [0.0] * len(A), []
    for cohort in COHORTS:
        for i in cohort:
            v = w
            for _ in range(2):
                slope = A[i] * (v - B[i]) * len(A) * SIZES[i] / n
                slope *= min(1.0, 1.5 / abs(slope))
                v -= 0.05 * (slope + 0.3 * v)
            kept[i] = (w - v) / 0.05
        w -= 0.05 * sum(kept) / len(A)
        expected.append(w)
    assert path(FedLaAvg(local), parabolas(A, B, SIZES), COHORTS, number_model(1.0)) == pytest.approx(
        expected, abs=1e-9
    )


# The invariant


def test_invariant_under_any_participation():
    star = star_of(FedLaAvg(full_batch(3)), number_model(), parabolas(A, B, SIZES), Cohorts(COHORTS))
    _, log = run(star, lambda w: (float(server(w).streams["gradient"]["w"]), memories(w, range(4))))
    for g, own in log.seen:
        assert g == pytest.approx(sum(own) / 4, abs=1e-13)
    assert len({g for g, _ in log.seen}) == len(COHORTS)


def test_invariant_in_single_precision():
    chance = random.Random(4)
    cohorts = tuple(tuple(sorted(chance.sample(range(4), chance.randint(1, 3)))) for _ in range(200))
    columns = [{n: c.float() for n, c in column.items()} for column in parabolas(A, B, SIZES).columns]
    model = Model(number_model(0.7).module.float(), Parabola(), inputs=("a",))
    star = star_of(FedLaAvg(full_batch(3, 0.03)), model, Clients(columns), Cohorts(cohorts))
    _, log = run(star, lambda w: (server(w).streams["gradient"]["w"], memories(w, range(4))))
    assert log.seen[-1][0].dtype == torch.float32
    assert max(abs(float(g) - sum(own) / 4) for g, own in log.seen) < 1e-5


def test_a_reply_that_is_refused_leaves_no_trace():
    """Client 1 sends infinity at first; asked again, it has forgotten that gradient."""
    columns = [dict(c) for c in parabolas().columns]
    good, columns[1]["b"] = columns[1]["b"], torch.full((1,), torch.inf, dtype=torch.float64)
    star = star_of(FedLaAvg(full_batch(2)), number_model(), Clients(columns), Cohorts(((1,), (1,), (0, 1))))

    def repair(world):
        columns[1]["b"] = good
        star._sites.clear()

    states, log = run(star, repair, kind="refused")
    assert len(log.seen) == 1
    own = [sum(float(c["w"]) for c in (states[i].own.value, *states[i].own.pending.values()) if c) for i in (0, 1)]
    assert float(states[SERVER].streams["gradient"]["w"]) == pytest.approx(sum(own) / 2, abs=1e-13)
    assert own[1] != 0


@dataclass(frozen=True)
class Halving(Cohorts):
    """Scales the updates of every other round, as for staleness."""

    def step(self, state: Any, event: Any, roster: Any) -> tuple[Any, list[Any]]:
        state, actions = super().step(state, event, roster)
        factor = 0.5 if state[0] % 2 else 1.0
        return state, [Commit(a.replies, [factor] * len(a.replies)) if isinstance(a, Commit) else a for a in actions]


def test_what_a_scheduler_has_scaled_is_not_remembered():
    """Its round commits nothing, and clients go on from what the server has."""
    star = star_of(FedLaAvg(full_batch(2)), number_model(), parabolas(A, B), Halving(COHORTS))
    states, log = run(star, lambda w: float(server(w).streams["gradient"]["w"]))
    assert (len(log.of("commit")), len(log.of("skipped"))) == (4, 5)  # the last round counts as scaled too
    assert "got updates that a scheduler has scaled by 0.5. Use a scheduler without" in log.of("skipped")[0]["reason"]
    told = states[SERVER].told
    own = [states[i].own for i in range(4)]
    total = sum(float(o.value["w"]) for o in own if o.value)
    total += sum(float(d["w"]) for i, o in enumerate(own) for id, d in o.pending.items() if id in told.get(i, ()))
    assert log.seen[-1] == pytest.approx(total / 4, abs=1e-13)
    assert len(set(log.seen)) == 4


@pytest.mark.parametrize("memory", KEEPERS)
def test_invariant_when_a_reply_comes_too_late(memory):
    """Client 1 answers its first task after the deadline, and takes part in later rounds."""
    population = parabolas(A[:3], B[:3])
    population.profiles = {0: Profile(seconds_per_step=0.3), 1: Profile(1.0), 2: Profile(0.3)}
    scheduler = Recorded(Synchronous(cohort=2, rounds=12, deadline_seconds=7.0))
    star = star_of(FedLaAvg(full_batch(9, 0.02), memory), number_model(), population, scheduler)

    def look(world):
        g = float(server(world).streams["gradient"]["w"])
        if memory == "server":
            kept = server(world).reducers["gradient"].kept
            return g, sum(float(u.values()["w"]) for u in kept.values()) / 3
        own = [world.state(i).own for i in range(3) if world.state(i) is not None and world.state(i).own is not None]
        total = sum(float(o.value["w"]) for o in own if o.value)
        total += sum(float(d["w"]) for o in own for id, d in o.pending.items() if id in scheduler.committed)
        return g, total / 3

    states, log = run(star, look)
    assert states[SERVER].next_id > len(scheduler.committed)  # some were never committed
    for g, mean in log.seen:
        assert g == pytest.approx(mean, abs=1e-13)


def test_who_remembers():
    """The server keeps one update for each client that has answered; its clients keep nothing."""
    for memory, nodes, kept in (("client", {SERVER, 0, 1, 2}, None), ("server", {SERVER}, {0, 1, 2})):
        star = star_of(FedLaAvg(full_batch(1), memory), number_model(), parabolas(A, B), Cohorts(((0, 1), (2, 0))))
        states, _ = run(star)
        assert set(states) == nodes
        if kept:
            assert states[SERVER].reducers["gradient"].kept.keys() == kept


# Submodels


def rows_after(algorithm, submodels, cohorts):
    model, population = problem(submodels)
    states, log = run(star_of(algorithm, model, population, Cohorts(tuple(cohorts))))
    assert not log.of("lost")
    return states, states[SERVER].streams["model"]["x"].flatten()


@pytest.mark.parametrize("memory", KEEPERS)
@pytest.mark.parametrize("submodels", [SUBMODELS, LOPSIDED])
def test_submodel_rounds_equal_the_plain_loop(memory, submodels):
    cohorts = ((0, 1), (2,), (1, 2), (0,), (0, 1, 2), (0, 2))
    algorithm = FedLaAvg(full_batch(3, 0.1), memory, submodel=True)
    states, at = rows_after(algorithm, submodels, cohorts)
    heat = [sum(row in held for held in submodels) for row in range(3)]
    w, kept = [0.0] * 3, [[0.0] * 3 for _ in range(3)]
    for cohort in cohorts:
        for i in cohort:
            held, v = submodels[i], list(w)
            for _ in range(3):
                slope = [sum(float(HESSIANS[i][p, q]) * v[q] for q in held) - float(SLOPES[i][p]) for p in range(3)]
                for p in held:
                    v[p] -= 0.1 * slope[p]
            kept[i] = [(w[p] - v[p]) / 0.1 for p in range(3)]
        g = [sum(k[p] for k in kept) / heat[p] for p in range(3)]
        w = [w[p] - 0.1 * g[p] for p in range(3)]
    assert at.tolist() == pytest.approx(w, abs=1e-12)
    assert states[SERVER].streams["gradient"]["x"].flatten().tolist() == pytest.approx(g, abs=1e-12)


@pytest.mark.parametrize("memory", KEEPERS)
def test_submodels_reach_the_minimiser_with_some_of_the_clients(memory):
    """One local step, so that nothing drifts; the gradients of the absent are remembered."""
    cohorts = [(0, 1), (2,), (1, 2), (0,)] * 120
    _, at = rows_after(FedLaAvg(full_batch(1, 0.15), memory, submodel=True), SUBMODELS, cohorts)
    torch.testing.assert_close(at, minimiser(SUBMODELS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("part", "stream"), [(FedLaAvg(weights="uniform"), "gradient"), (Scaffold(), "control")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mean_over_many_clients_is_added_up_in_single_precision(part, stream, dtype):
    """Five hundred times a 512th: in bfloat16 alone the sum stays at a half, of whose last digit a 512th is half."""
    where = Whole({"w": (1,)})
    state = part.init({"w": torch.zeros(1, dtype=dtype)}, Census(512))
    change = Update(where, {"w": torch.full((1,), 1 / 512, dtype=dtype)})
    nothing = Update(where, {"w": torch.zeros(1, dtype=dtype)})
    for _ in range(500):
        state = part.commit(state, {"model": nothing, stream: change}, ())
    assert state[stream]["w"].dtype == dtype
    assert state[stream]["w"].item() == pytest.approx(500 / 512, rel=2**-8)


# Composition, bad input


@pytest.mark.parametrize(
    "part",
    [
        FedLaAvg(memory="server"),
        FedLaAvg(submodel=True),
        FedLaAvg(memory="server", submodel=True, num_non_update_rounds=1),
        FedLaAvg(weights="uniform"),
        LocalOnly(FedLaAvg(), names=("out.bias",)),
    ],
    ids=repr,
)
def test_contract(part):
    check_algorithm(part)


def test_running_statistics_are_refused_and_may_stay_on_clients():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.norm(x))

    rng = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(6, 3, generator=rng) + 5, "y": torch.tensor([0, 1] * 3)} for _ in range(2)]
    population, model = Clients(rows), Model(Normed, CrossEntropy())
    _, log = run(star_of(FedLaAvg(full_batch(2)), model, population, everybody(population, 1)))
    assert (
        "running statistics do not have, got ['norm.running_mean', 'norm.running_var']" in log.of("lost")[0]["reason"]
    )
    assert "LocalOnly(FedLaAvg(...))" in log.of("lost")[0]["reason"]
    states, log = run(star_of(LocalOnly(FedLaAvg(full_batch(2))), model, population, everybody(population, 2)))
    assert not log.of("lost")
    assert float(states[0].own.value["norm.running_mean"].min()) > 1
    assert not states[SERVER].streams["model"]["norm.running_mean"].any()
    assert states[SERVER].streams["gradient"]["out.weight"].any()


def test_it_needs_plain_sgd():
    for rule in (SGD(0.1, momentum=0.9), AdamW(), SGD(0.1, weight_decay=0.1, cautious=True)):
        with pytest.raises(
            CompositionError, match=r"FedLaAvg\(\): reads the sum of gradients .* got .*Use SGD without"
        ):
            FedLaAvg(LocalTraining(rule))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"memory": "both"},
            r"FedLaAvg\(memory='both'\): must be one of client, server, got 'both'. 'client' is usual",
        ),
        ({"weights": "heat"}, r"FedLaAvg\(weights='heat'\): must be one of samples, uniform, got 'heat'"),
        ({"num_non_update_rounds": -1}, r"FedLaAvg\(num_non_update_rounds=-1\): must be at least 0, got -1"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        FedLaAvg(**settings)


def test_a_chain_for_the_model_is_refused():
    """Nothing goes that way: it would be silently without effect."""
    with pytest.raises(CompositionError, match=r"FedLaAvg: has the streams \['gradient'\], got an aggregator for"):
        star_of(FedLaAvg(), number_model(), parabolas(), Cohorts(()), aggregators={"model": Latest()})


def test_a_client_that_was_never_asked_counts_as_zero():
    """One of four clients: a quarter of its step, and twice as much with half of the heat."""
    ours = path(FedLaAvg(full_batch(1, 0.1), weights="uniform"), parabolas(A, B), [(1,)])
    assert ours == [pytest.approx(0.1 * 3 * 4 / 4)]
    assert not math.isclose(ours[0], path(FedAvg(full_batch(1, 0.1)), parabolas(A, B), [(1,)])[0])


def test_messages():
    """One difference up and the model down, whatever is remembered."""
    algorithm = FedLaAvg()
    star = star_of(algorithm, number_model(), parabolas(), Cohorts(()))
    site = star.site(0)
    asked = algorithm.fetch(site.whole(), None, None, site)
    assert {stream: dict(index.shapes) for stream, index in asked.items()} == {
        "model": {"w": (1,)},
        "scale": {"examples": ()},
    }
    assert isinstance(asked["model"], Whole)
    assert set(FedLaAvg(weights="uniform").fetch(site.whole(), None, None, site)) == {"model"}

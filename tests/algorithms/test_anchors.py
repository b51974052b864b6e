"""FedAMD against printed numbers and plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from partwise.algorithms import FedAMD, FedLaAvg, LocalOnly, Scaffold
from partwise.algorithms.memory import PopulationMean
from partwise.core.aggregate import sum_updates
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole
from partwise.core.mean import Mean
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Census, Profile
from partwise.core.program import SERVER
from partwise.core.schedule import Dispatch
from partwise.core.update import Update, to_dense
from partwise.local import SGD, LocalTraining
from partwise.runtimes.executors.plain import batches
from partwise.schedulers import FedBuff, Synchronous
from partwise.schedulers.staleness import Constant
from partwise.testing import check_algorithm
from toy_federation import model as tagger
from toy_federation import population as words
from toy_rows import HESSIANS, LOPSIDED, SLOPES, problem
from toy_star import Clients, Cohorts, Recorded, everybody, full_batch, number_model, parabolas, run, server, star_of

A, B = (1.0, 3.0, 0.5, 2.0), (0.0, 4.0, -3.0, 1.5)


@dataclass(frozen=True)
class Cast(Cohorts):
    """Cohorts of which some clients are anchors: group 1."""

    anchors: tuple[tuple[int, ...], ...] = ()

    def _open(self, round: int) -> tuple[Any, list[Any]]:
        state, actions = super()._open(round)
        return state, [
            a._replace(group=int(a.client in self.anchors[round])) if isinstance(a, Dispatch) else a for a in actions
        ]


def cast(algorithm, population, rounds, model=None, look=None):
    """(anchors, miners) of every round; what was seen after each."""
    scheduler = Cast(tuple(tuple(sorted((*a, *m))) for a, m in rounds), tuple(tuple(anchors) for anchors, _ in rounds))
    star = star_of(algorithm, model or number_model(1.0), population, scheduler)
    states, log = run(star, look or seen)
    assert not log.of("lost")
    return states, log


def seen(world):
    streams = server(world).streams
    return float(streams["model"]["w"]), float(streams["anchors"]["w"])


def by_group(steps=3, lr=0.1, **more):
    return FedAMD(full_batch(steps, lr), roles="group", **more)


# Printed numbers: at w = 1 the gradients are 1 and -9


@pytest.mark.parametrize(("miners", "end"), [((0,), 2.084), ((1,), 1.876), ((0, 1), 1.98)])
def test_running_example(miners, end):
    _, log = cast(by_group(), parabolas(), [((0, 1), ()), ((), miners)])
    assert log.seen[0] == (1.0, pytest.approx(-4.0, abs=1e-12))
    assert log.seen[1] == (pytest.approx(end, abs=1e-12), pytest.approx(-4.0, abs=1e-12))


@pytest.mark.parametrize("miner", [0, 1])
def test_the_first_step_is_the_mean_gradient(miner):
    _, log = cast(by_group(1, 0.03), parabolas(), [((0, 1), ()), ((), (miner,))])
    assert log.seen[1][0] == pytest.approx(1 + 0.03 * 4, abs=1e-12)


@pytest.mark.parametrize("miners", [(0,), (2,), (1, 3), (0, 1, 2, 3)])
def test_one_step_with_fresh_anchors_is_a_full_gradient_step(miners):
    _, log = cast(by_group(1, 0.03), parabolas(A, B), [((0, 1, 2, 3), ()), ((), miners)])
    full = sum(a * (1.0 - b) for a, b in zip(A, B, strict=True)) / 4
    assert log.seen[1][0] == pytest.approx(1 - 0.03 * full, abs=1e-12)


def test_anchors_only_never_move_the_model():
    population = parabolas(A, B)  # and the model a number whose sign is lost when 0 is added to it
    star = star_of(FedAMD(full_batch(2), anchor_prob=1.0), number_model(-0.0), population, everybody(population, 4))
    states, log = run(star, seen)
    assert str(float(states[SERVER].streams["model"]["w"])) == "-0.0"
    assert {v for _, v in log.seen} == {log.seen[0][1]} != {0.0}


def test_miners_only_leave_the_anchors_as_they_were():
    population = parabolas(A, B)
    star = star_of(FedAMD(full_batch(2), anchor_prob=0.0), number_model(1.0), population, everybody(population, 4))
    _, log = run(star, seen)
    first = sum(a * (1.0 - b) for a, b in zip(A, B, strict=True)) / 4
    assert [v for _, v in log.seen] == pytest.approx([first] * 4, abs=1e-12)
    assert len({w for w, _ in log.seen}) == 4


# Plain loops

ROUNDS = (((0, 1, 3), ()), ((2,), (0, 1)), ((), (3,)), ((0, 3), (2,)), ((1,), (0, 3)), ((1,), ()), ((), (1, 2)))


def oracle(rounds, steps, lr, start=1.0):
    """FedAMD on the parabolas A, B in plain floats: w and the mean of the anchors after each round."""
    w, v, found = start, [0.0] * len(A), []
    for anchors, miners in rounds:
        guide, moved = sum(v) / len(A), 0.0
        for i in miners:
            last = y = w
            h = guide
            for _ in range(steps):
                h += A[i] * (y - B[i]) - A[i] * (last - B[i])
                last, y = y, y - lr * h
            moved += y - w
        for i in anchors:
            v[i] = A[i] * (w - B[i])
        w += moved / len(miners) if miners else 0.0
        found.append((w, sum(v) / len(A)))
    return found


def test_equals_the_plain_loop():
    _, log = cast(by_group(4), parabolas(A, B, (1, 4, 2, 2)), ROUNDS)
    for ours, theirs in zip(log.seen, oracle(ROUNDS, 4, 0.1), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_both_gradients_are_of_the_same_batch():
    """On examples that differ, batches of one: with others at the second point the recursion would be another."""
    column = {"a": torch.tensor([1.0, 3.0, 0.5]).double(), "b": torch.tensor([0.0, 4.0, -3.0]).double()}
    algorithm = FedAMD(LocalTraining(SGD(0.1), batch_size=1, steps=5), roles="group")
    star = star_of(algorithm, number_model(1.0), Clients([column]), Cast(((0,), (0,)), anchors=((0,), ())))
    _, log = run(star, seen)
    task = Task(1, 1, 0, 0)
    site = star.site(0)
    held = {"model": {"w": torch.ones(1)}, "anchors": {"w": torch.ones(1)}}
    plan = algorithm.plan(held, site.whole(), task, algorithm.client_init(site), site)
    guide = sum(a * (1.0 - b) for a, b in zip(*(column[n].tolist() for n in "ab"), strict=True)) / 3
    last = y = 1.0
    h, order = guide, []
    for at in batches(plan, 3, site.derive("work", task)):
        i = int(at)
        order.append(i)
        h += float(column["a"][i]) * (y - last)
        last, y = y, y - 0.1 * h
    assert len(set(order)) == 3
    assert log.seen[1][0] == pytest.approx(y, abs=1e-12)


def test_a_rate_that_decays():
    local = LocalTraining(SGD(0.1), batch_size=0, steps=1, lr_decay=0.5)
    _, log = cast(FedAMD(local, roles="group"), parabolas(), [((0, 1), ()), ((), (0,))])
    assert log.seen[1][0] == pytest.approx(1 + 0.05 * 4, abs=1e-12)


def test_a_large_batch_instead_of_everything():
    column = {"a": torch.tensor([1.0, 3.0, 0.5]).double(), "b": torch.tensor([0.0, 4.0, -3.0]).double()}
    algorithm = FedAMD(large_batch=1)
    _, log = run(star_of(algorithm, number_model(1.0), Clients([column]), everybody(Clients([column]), 1)), seen)
    assert any(log.seen[0][1] == pytest.approx(g) for g in (1.0, -9.0, 2.0))


# Who is what


def test_chance_is_derived_and_has_the_probability():
    algorithm = FedAMD(anchor_prob=0.3)
    star = star_of(algorithm, number_model(), parabolas([1.0] * 40, [0.0] * 40), Cohorts(()), seed=6)
    drawn = [[algorithm.is_anchor(Task(0, v, 0, 0), star.site(i)) for v in range(1, 51)] for i in range(40)]
    assert abs(sum(map(sum, drawn)) / 2000 - 0.3) < 0.04  # four standard deviations
    assert len({tuple(row) for row in drawn}) == 40
    assert drawn[3] == [algorithm.is_anchor(Task(99, v, 0, 5), star.site(3)) for v in range(1, 51)]


def test_everybody_at_version_zero_and_periods():
    star = star_of(FedAMD(), number_model(), parabolas(), Cohorts(()))
    whens: dict[str, tuple[FedAMD, Callable[[int], bool]]] = {
        "warm": (FedAMD(anchor_prob=0.0), lambda v: v == 0),
        "cold": (FedAMD(anchor_prob=0.0, warm_up=False), lambda v: False),
        "period": (FedAMD(roles="period", period=3), lambda v: v % 3 == 0),
    }
    for algorithm, rule in whens.values():
        assert [algorithm.is_anchor(Task(v, v, 0, 0), star.site(0)) for v in range(7)] == [rule(v) for v in range(7)]


def test_anchors_are_not_sent_the_mean_and_each_sends_one_update():
    algorithm = by_group()
    star = star_of(algorithm, number_model(), parabolas(), Cohorts(()))
    site = star.site(0)
    assert set(algorithm.fetch(site.whole(), Task(1, 1, 0, 0, group=1), None, site)) == {"model"}
    assert set(algorithm.fetch(site.whole(), Task(1, 1, 0, 0), None, site)) == {"model", "anchors"}


def test_closed_forms():
    found = [FedAMD.closed_form(100, 20), FedAMD.closed_form(20, 10)]
    found += [FedAMD.closed_form(100, 20, each=True), FedAMD.closed_form(20, 10, each=True)]
    assert found == pytest.approx([0.488, 0.472, 0.887, 0.836], abs=5e-4)
    with pytest.raises(ValueError, match=r"FedAMD.closed_form\(cohort=30\): must lie in 1..20, got 30"):
        FedAMD.closed_form(20, 30)


# Replies that are lost


def test_invariant_when_replies_come_too_late():
    population = parabolas(A[:3], B[:3])
    population.profiles = {0: Profile(seconds_per_step=0.3), 1: Profile(9.0), 2: Profile(0.3)}
    scheduler = Recorded(Synchronous(cohort=2, rounds=14, deadline_seconds=7.0))
    star = star_of(FedAMD(full_batch(2), anchor_prob=0.6), number_model(), population, scheduler)

    def look(world):
        own = [world.state(i).own for i in range(3) if world.state(i) is not None and world.state(i).own is not None]
        total = sum(float(o.value["w"]) for o in own if o.value)
        total += sum(float(d["w"]) for o in own for id, d in o.pending.items() if id in scheduler.committed)
        return float(server(world).streams["anchors"]["w"]), total / 3

    states, log = run(star, look)
    assert states[SERVER].next_id > len(scheduler.committed)  # some were never committed
    assert len({v for v, _ in log.seen}) > 4
    for v, mean in log.seen:
        assert v == pytest.approx(mean, abs=1e-13)


# Submodels


def test_submodel_rounds_equal_the_plain_loop():
    """Both means are over those that hold a row: all of them, and the miners among the cohort."""
    rounds = (((0, 1, 2), ()), ((2,), (0, 1)), ((), (1, 2)), ((0,), (2,)), ((1, 2), (0,)))
    model, population = problem(LOPSIDED, torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64))
    rows = lambda world: [server(world).streams[s]["x"].flatten().tolist() for s in ("model", "anchors")]  # noqa: E731
    _, log = cast(by_group(3, submodel=True), population, rounds, model, rows)

    def slope(i, at):
        held = LOPSIDED[i]
        found = [sum(float(HESSIANS[i][p, q]) * at[q] for q in held) - float(SLOPES[i][p]) for p in range(3)]
        return [found[p] if p in held else 0.0 for p in range(3)]

    w, v, heat = [0.7, -0.2, 1.1], [[0.0] * 3 for _ in range(3)], (3, 2, 1)
    for (anchors, miners), (ours, guide_ours) in zip(rounds, log.seen, strict=True):
        guide = [sum(u[p] for u in v) / heat[p] for p in range(3)]
        moved, count = [0.0] * 3, [0] * 3
        for i in miners:
            y, last, h = list(w), list(w), list(guide)
            for _ in range(3):
                here, there = slope(i, y), slope(i, last)
                h, last = [h[p] + here[p] - there[p] for p in range(3)], list(y)
                for p in LOPSIDED[i]:
                    y[p] -= 0.1 * h[p]
            for p in LOPSIDED[i]:
                moved[p], count[p] = moved[p] + y[p] - w[p], count[p] + 1
        for i in anchors:
            v[i] = slope(i, w)
        w = [w[p] + moved[p] / max(1, count[p]) for p in range(3)]
        assert ours == pytest.approx(w, abs=1e-12)
        assert guide_ours == pytest.approx([sum(u[p] for u in v) / heat[p] for p in range(3)], abs=1e-12)


# Weights of zero, in the mean and over the population


@pytest.mark.parametrize("by", ["cohort", "holders", "expected", "expected_holders", "ratio"])
@pytest.mark.parametrize("kind", ["whole", "rows", "nothing"])
def test_updates_that_weigh_nothing_change_no_bit(by, kind):
    params = {"E": torch.tensor([[-0.0, 1.0], [2.0, -3.0], [0.5, -0.0]]), "b": torch.tensor(-0.0)}
    shapes = {"E": (3, 2), "b": ()}
    index = {
        "whole": Whole(shapes),
        "rows": Rows(shapes, {"E": torch.tensor([0, 2]), "b": None}),
        "nothing": Whole({}),
    }[kind]
    updates = [Update(index, {n: torch.ones(index.held_shape(n)) for n in index.shapes}, 0.0)] * 2
    heat = {"E": torch.full((3, 1), 4.0), "b": torch.tensor(4.0)}
    census = Census(4, lambda: type("_", (), {"weight": heat, "heat": heat, "total_weight": 4.0}))  # type: ignore[arg-type,return-value]
    for part in (Mean(by), Mean(by, at_least=1.0), PopulationMean(), PopulationMean(by_heat=True)):
        total, _ = part.reduce(sum_updates(updates, params), part.init(params, census), params)
        after = {n: t.clone() for n, t in params.items()}
        total.index.scatter_add_(after, total.values())
        assert {n: t.tolist() for n, t in after.items()} == {n: t.tolist() for n, t in params.items()}
        signs = [torch.equal(torch.signbit(after[n]), torch.signbit(params[n])) for n in params]
        assert all(signs) or kind == "rows"  # where a row is held, 0 is added


def test_weight_of_zero_beside_others():
    params = {"w": torch.zeros(2)}
    at = Whole({"w": (2,)})
    updates = [Update(at, {"w": torch.tensor([6.0, 2.0])}, 1.0), Update(at, {"w": torch.ones(2)}, 0.0)]
    updates.append(Update(Whole({}), {}, 0.0))
    for part, divisor in ((Mean("cohort"), 1.0), (Mean("holders"), 1.0), (PopulationMean(), 5.0)):
        total, _ = part.reduce(sum_updates(updates, params), part.init(params, Census(5)), params)
        assert to_dense(total, params)["w"].tolist() == [pytest.approx(6 / divisor), pytest.approx(2 / divisor)]


def test_what_is_remembered_is_not_scaled():
    params, at = {"w": torch.zeros(1)}, Whole({"w": (1,)})
    got = sum_updates([Update(at, {"w": torch.ones(1)})], params, [0.5])
    with pytest.raises(CompositionError, match=r"PopulationMean\(by_heat=False\): .* scaled by 0.5. Use a scheduler"):
        PopulationMean().reduce(got, PopulationMean().init(params, Census(2)), params)


@pytest.mark.parametrize("part", [Scaffold(), FedAMD(), FedLaAvg(memory="server"), LocalOnly(FedLaAvg(), names=("w",))])
def test_no_scheduler_that_may_scale(part):
    population, model = parabolas(), number_model()
    with pytest.raises(CompositionError, match=r"what clients remember having sent, got FedBuff\(.*, which may scale"):
        star_of(part, model, population, FedBuff(buffer=1, concurrency=2))
    star_of(part, model, population, FedBuff(buffer=1, concurrency=2, staleness=Constant()))


# Composition, bad input


@pytest.mark.parametrize(
    "part",
    [
        FedAMD(anchor_prob=0.0),
        FedAMD(anchor_prob=0.5, warm_up=False),
        FedAMD(anchor_prob=0.0, submodel=True),
        FedAMD(roles="period", period=1),
        LocalOnly(FedAMD(anchor_prob=0.0), names=("out.bias",)),
    ],
    ids=repr,
)
def test_contract(part):
    check_algorithm(part)


def test_what_stays_on_a_client_is_trained_by_miners_alone():
    population = words(2)
    algorithm = LocalOnly(FedAMD(full_batch(1, 0.1), roles="group"), names=("out.bias",))
    star = star_of(algorithm, tagger(), population, Cast(((0, 1), (0, 1)), anchors=((0, 1), (1,))))
    states, log = run(star)
    assert not log.of("lost")
    begun = tagger().init(0)["out.bias"]
    assert torch.equal(states[1].own.value["out.bias"], begun)
    params = {n: t.clone().requires_grad_(n == "out.bias") for n, t in tagger().init(0).items()}
    data = population.data(0)
    tagger().losses(params, data.columns()).mean().backward()
    torch.testing.assert_close(states[0].own.value["out.bias"], begun - 0.1 * params["out.bias"].grad)


def test_running_statistics_are_averaged_over_miners():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.norm(x))

    rng = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(6, 3, generator=rng) + 5, "y": torch.tensor([0, 1] * 3)} for _ in range(2)]
    star = star_of(
        by_group(1), Model(Normed, CrossEntropy()), Clients(rows), Cast(((0, 1), (0, 1)), anchors=((0, 1), (1,)))
    )
    states, log = run(star)
    assert not log.of("lost")
    streams = states[SERVER].streams
    torch.testing.assert_close(streams["model"]["norm.running_mean"], 0.1 * rows[0]["x"].mean(0))
    assert not streams["anchors"]["norm.running_mean"].any()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"anchor_prob": 1.2}, r"FedAMD\(anchor_prob=1.2\): must lie in \[0, 1\], got 1.2. 0.2 is usual"),
        ({"anchor_prob": -0.1}, r"FedAMD\(anchor_prob=-0.1\): must lie in \[0, 1\]"),
        ({"anchor_prob": float("nan")}, r"FedAMD\(anchor_prob=nan\): must lie in \[0, 1\]"),
        ({"roles": "vote"}, r"FedAMD\(roles='vote'\): must be one of chance, period, group, got 'vote'"),
        ({"period": 0}, r"FedAMD\(period=0\): must be at least 1, got 0"),
        ({"large_batch": -1}, r"FedAMD\(large_batch=-1\): must be at least 0, got -1"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        FedAMD(**settings)


def test_it_needs_plain_sgd():
    for local in (
        LocalTraining(SGD(0.1, momentum=0.9)),
        LocalTraining(SGD(0.1, weight_decay=0.1)),
        LocalTraining(SGD(0.1), max_norm=1.0),
    ):
        with pytest.raises(CompositionError, match=r"FedAMD\(\): a miner's direction .* got LocalTraining.*SGD\(lr\)"):
            FedAMD(local)

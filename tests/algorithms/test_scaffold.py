"""SCAFFOLD, whole and as a submodel method, against printed numbers and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partwise.algorithms import FedAvg, FedProx, FedSubAvg, LocalOnly, Scaffold
from partwise.core.algorithm import Site, Task
from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError
from partwise.core.index import Whole
from partwise.core.model import CrossEntropy, Model, like
from partwise.core.plan import Trained
from partwise.core.population import Examples, Profile
from partwise.local import SGD, AdamW, LocalTraining
from partwise.schedulers import FedBuff, Synchronous
from partwise.schedulers.staleness import Constant
from toy_rows import HESSIANS, LOPSIDED, ORIGIN, SLOPES, SUBMODELS, minimiser, problem
from toy_star import (
    Clients,
    Cohorts,
    Recorded,
    everybody,
    full_batch,
    number_model,
    parabolas,
    run,
    server,
    star_of,
    trajectory,
)


def controls(world, clients):
    """c, and what each client's control is once its pending changes count."""
    own = {}
    for i in clients:
        node = world.state(i)
        own[i] = 0.0
        if node is not None and node.own is not None:
            value = node.own.value
            for change in node.own.pending.values():
                value = {n: t + change[n] for n, t in value.items()}
            own[i] = float(value["w"])
    return float(server(world).streams["control"]["w"]), own


def test_running_example():
    population = parabolas()
    star = star_of(Scaffold(full_batch(5)), number_model(), population, everybody(population, 40))
    _, log = run(star, lambda world: (float(server(world).streams["model"]["w"]), *controls(world, (0, 1))))
    w, c, own = log.seen[0]
    assert (w, c, own[0], own[1]) == pytest.approx((1.66386, -3.32772, 0.0, -6.65544), abs=1e-12)
    assert log.seen[1][0] == pytest.approx(2.5148911128, abs=5e-11)
    assert log.seen[2][0] == pytest.approx(2.860099748, abs=5e-10)
    assert log.seen[9][0] == pytest.approx(3.000177107, abs=5e-10)
    w, c, own = log.seen[-1]
    assert (w, c, own[0], own[1]) == pytest.approx((3.0, 0.0, 3.0, -3.0), abs=1e-9)


def test_invariant_under_any_participation():
    a, b = (1.0, 3.0, 0.5, 2.0), (0.0, 4.0, -3.0, 1.5)
    population = parabolas(a, b)
    cohorts = ((0, 2), (1,), (0, 1, 3), (2, 3), (0,), (0,), (1, 2))
    star = star_of(Scaffold(full_batch(3)), number_model(), population, Cohorts(cohorts))
    _, log = run(star, lambda world: controls(world, range(4)))
    for c, own in log.seen:
        assert c == pytest.approx(sum(own.values()) / 4, abs=1e-13)
    assert len({c for c, _ in log.seen}) == len(cohorts)


def oracle(a, b, cohorts, lr, steps, option):
    """SCAFFOLD on parabolas in plain floats: w after each round."""
    w, c, own, path = 0.0, 0.0, [0.0] * len(a), []
    for cohort in cohorts:
        dw = dc = 0.0
        for i in cohort:
            v = w
            for _ in range(steps):
                v -= lr * (a[i] * (v - b[i]) - own[i] + c)
            new = own[i] - c + (w - v) / (steps * lr) if option == "II" else a[i] * (w - b[i])
            dw, dc = dw + (v - w), dc + new - own[i]
            own[i] = new
        w, c = w + dw / len(cohort), c + dc / len(a)
        path.append(w)
    return path


@pytest.mark.parametrize("option", ["I", "II"])
def test_equals_the_plain_loop(option):
    a, b = (1.0, 3.0, 0.5), (0.0, 4.0, -3.0)
    cohorts = ((0, 1), (1, 2), (0, 2), (2,), (0, 1, 2))
    star = star_of(Scaffold(full_batch(4), option), number_model(), parabolas(a, b, (3, 1, 2)), Cohorts(cohorts))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert log.seen == pytest.approx(oracle(a, b, cohorts, 0.1, 4, option), abs=1e-12)


def test_step_sizes_that_were_used_count():
    """With a decayed learning rate the control is still the mean gradient: the limit is the minimiser."""
    local = LocalTraining(SGD(0.2), batch_size=0, steps=5, lr_decay=0.98)
    assert trajectory(Scaffold(local), 60, parabolas())[-1] == pytest.approx(3.0, abs=1e-6)


def test_one_local_step_is_fedavg():
    ours = trajectory(Scaffold(full_batch(1)), 6, parabolas())
    assert ours == pytest.approx(trajectory(FedAvg(full_batch(1), "uniform"), 6, parabolas()), abs=1e-13)


# Submodels: overlapping quadratics over the rows of a table


def after(algorithm, submodels, cohorts, start=ORIGIN):
    """All states, and the table after the given rounds."""
    model, population = problem(submodels, start)
    states, log = run(star_of(algorithm, model, population, Cohorts(cohorts)))
    assert not log.of("lost")
    return states, states[-1].streams["model"]["x"].flatten()


@pytest.mark.parametrize("submodels", [SUBMODELS, LOPSIDED])
def test_fedavg_and_heat_settle_at_one_point_and_scaffold_at_the_minimiser(submodels):
    """§A.2 and §A.7 of the method notes, on a problem of our own."""
    everyone, best = ((0, 1, 2),), minimiser(submodels)
    _, drifted = after(FedSubAvg("heat", full_batch(5, lr=0.3)), submodels, everyone * 18)
    assert float((drifted - best).abs().max()) > 1e-2  # client drift
    _, zero_filled = after(FedSubAvg("fedavg", full_batch(5, lr=0.3)), submodels, everyone, start=drifted)
    torch.testing.assert_close(zero_filled, drifted, rtol=0, atol=1e-8)
    _, one_step = after(FedSubAvg("heat", full_batch(1, lr=0.3)), submodels, everyone, start=best)
    torch.testing.assert_close(one_step, best, rtol=0, atol=1e-12)
    _, corrected = after(Scaffold(full_batch(5), submodel=True), submodels, everyone * 25)
    torch.testing.assert_close(corrected, best, rtol=0, atol=1e-6)


def test_submodel_scaffold_with_two_of_three():
    generator = torch.Generator().manual_seed(3)
    cohorts = tuple(tuple(sorted(torch.randperm(3, generator=generator)[:2].tolist())) for _ in range(90))
    states, at = after(Scaffold(full_batch(5), submodel=True), SUBMODELS, cohorts)
    torch.testing.assert_close(at, minimiser(SUBMODELS), rtol=0, atol=1e-6)
    total, heat = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for i, held in enumerate(SUBMODELS):
        own = states[i].own
        value = own.value["x"].flatten() + sum(change["x"].flatten() for change in own.pending.values())
        for row, entry in zip(held, value.tolist(), strict=True):
            total[row] += entry
            heat[row] += 1
    torch.testing.assert_close(states[-1].streams["control"]["x"].flatten(), total / heat, rtol=0, atol=1e-12)


def test_submodel_round_equals_the_plain_loop():
    cohorts = ((0, 1), (1, 2), (0, 1, 2), (0, 2))
    _, at = after(Scaffold(full_batch(3), submodel=True), LOPSIDED, cohorts)
    w, c, own = [0.0] * 3, [0.0] * 3, [[0.0] * 3 for _ in range(3)]
    heat = (3, 2, 1)
    for cohort in cohorts:
        dw, dc = [0.0] * 3, [0.0] * 3
        for i in cohort:
            held, v = LOPSIDED[i], list(w)
            for _ in range(3):
                slope = [sum(float(HESSIANS[i][p, q]) * v[q] for q in held) - float(SLOPES[i][p]) for p in range(3)]
                for p in held:
                    v[p] -= 0.1 * (slope[p] - own[i][p] + c[p])
            for p in held:
                new = own[i][p] - c[p] + (w[p] - v[p]) / 0.3
                dw[p], dc[p] = dw[p] + v[p] - w[p], dc[p] + new - own[i][p]
                own[i][p] = new
        w = [w[p] + 3 / (len(cohort) * heat[p]) * dw[p] for p in range(3)]
        c = [c[p] + dc[p] / heat[p] for p in range(3)]
    assert at.tolist() == pytest.approx(w, abs=1e-12)


# Clients that are lost


def test_a_reply_that_is_refused_leaves_no_trace():
    """Client 1 sends infinity at first; asked again at the same version, it has forgotten that change."""
    columns = [dict(c) for c in parabolas().columns]
    population = Clients(columns)
    good, columns[1]["b"] = columns[1]["b"], torch.full((1,), torch.inf, dtype=torch.float64)
    star = star_of(Scaffold(full_batch(2)), number_model(), population, Cohorts(((1,), (1,), (0, 1))))

    def repair(world):
        columns[1]["b"] = good
        star._sites.clear()

    states, log = run(star, repair, kind="refused")
    assert len(log.seen) == 1
    own = [states[i].own.value.get("w", 0) + sum(d["w"] for d in states[i].own.pending.values()) for i in (0, 1)]
    assert float(states[-1].streams["control"]["w"]) == pytest.approx(float(own[0] + own[1]) / 2, abs=1e-13)
    assert float(own[1]) != 0


def test_invariant_when_a_reply_comes_too_late():
    """Client 1 answers its first task after the deadline, and takes part in later rounds."""
    population = parabolas((1.0, 3.0, 0.5), (0.0, 4.0, -3.0))
    population.profiles = {0: Profile(seconds_per_step=0.3), 1: Profile(1.0), 2: Profile(0.3)}
    scheduler = Recorded(Synchronous(cohort=2, rounds=12, deadline_seconds=7.0))
    star = star_of(Scaffold(full_batch(9)), number_model(), population, scheduler)

    def look(world):
        own = [world.state(i).own for i in range(3) if world.state(i) is not None and world.state(i).own is not None]
        total = sum(float(o.value["w"]) for o in own if o.value)
        total += sum(float(d["w"]) for o in own for id, d in o.pending.items() if id in scheduler.committed)
        return float(server(world).streams["control"]["w"]), total / 3

    states, log = run(star, look)
    assert states[-1].next_id > len(scheduler.committed)  # some were never committed
    for c, mean in log.seen:
        assert c == pytest.approx(mean, abs=1e-13)


def test_changes_that_are_never_committed_are_forgotten():
    algorithm, population = Scaffold(full_batch(1)), parabolas()
    site = star_of(algorithm, number_model(), population, Cohorts(())).site(0)
    own, one = algorithm.client_init(site), {"w": torch.ones(1, dtype=torch.float64)}
    held, trained, index = {"model": one, "control": one}, Trained({"w": one["w"] * 0}, 1, 0.0), Whole({"w": (1,)})
    for id in range(9):
        _, own = algorithm.finish(held, trained, index, Task(id, id, 0, 0), own, site)
    assert sorted(own.pending) == [5, 6, 7, 8]
    _, own = algorithm.finish(held, trained, index, Task(9, 9, 0, 0, committed=(2, 6, 7)), own, site)
    assert sorted(own.pending) == [8, 9]
    assert float(own.value["w"]) == -2  # each change was the server's control, subtracted


@pytest.mark.parametrize("buffer", [3, 8])
def test_invariant_when_a_quick_client_has_most_replies_of_a_commit(buffer):
    """Client 0 answers again and again before the commit that all of it is in."""
    population = parabolas((1.0, *(3.0,) * 7), (5.0, *(-2.0,) * 7))
    population.profiles = {i: Profile(0.5 if i else 0.001) for i in range(8)}
    scheduler = Recorded(FedBuff(buffer=buffer, concurrency=8, staleness=Constant(), versions=5))
    star = star_of(Scaffold(full_batch(2)), number_model(), population, scheduler)

    def look(world):
        own = [state.own for i in range(8) if (state := world.state(i)) is not None and state.own is not None]
        total = sum(float(o.value["w"]) for o in own if o.value)
        total += sum(float(d["w"]) for o in own for id, d in o.pending.items() if id in scheduler.committed)
        return float(server(world).streams["control"]["w"]), total / 8

    _, log = run(star, look)
    assert [record["clients"] for record in log.of("commit")] == [[0] * buffer] * 5
    for c, mean in log.seen:
        assert c == pytest.approx(mean, rel=1e-12)


def test_control_follows_a_held_part_that_changes():
    """Coordinates that stay keep their control, new ones begin at 0."""
    algorithm = Scaffold(full_batch(1), submodel=True)
    model, population = problem(((0, 1), (1, 2)))
    star = star_of(algorithm, model, population, Cohorts(()))
    first, second = star.site(0), star.site(1)
    params = {"x": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)}
    own = algorithm.client_init(first)
    for number, site in enumerate((first, second)):
        task = Task(number, number, 0, 0, committed=(0,) if number else ())
        index = algorithm.select(task, own, site)
        held = {"model": index.gather(params), "control": index.gather({"x": torch.zeros_like(params["x"])})}
        change = {"x": -torch.tensor([[0.3], [0.5]], dtype=torch.float64)}
        _, own = algorithm.finish(held, Trained(change, 1, 0.0), index, task, own, site)
    assert own.where.rows["x"].tolist() == [1, 2]
    assert own.value["x"].flatten().tolist() == pytest.approx([5.0, 0.0])
    assert own.pending[1]["x"].flatten().tolist() == pytest.approx([3.0, 5.0])


# State, buffers, messages


def test_client_state_survives_the_codec():
    model, population = problem(LOPSIDED)
    states, _ = run(star_of(Scaffold(full_batch(2), submodel=True), model, population, Cohorts(((0, 1, 2),) * 2)))
    again = decode(encode(states[1].own))
    assert type(again) is type(states[1].own)
    assert again.pending.keys() == states[1].own.pending.keys()
    assert torch.equal(again.value["x"], states[1].own.value["x"])
    assert torch.equal(again.where.rows["x"], torch.tensor([0, 1]))


def test_buffers_have_no_control():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.norm(x))

    generator = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(6, 3, generator=generator) + 5, "y": torch.tensor([0, 1] * 3)} for _ in range(2)]
    population = Clients(rows)
    for option in ("I", "II"):
        star = star_of(
            Scaffold(full_batch(2), option), Model(Normed, CrossEntropy()), population, everybody(population, 2)
        )
        states, log = run(star)
        assert not log.of("lost")
        streams = states[-1].streams
        assert float(streams["model"]["norm.running_mean"].min()) > 1
        assert not streams["control"]["norm.running_mean"].any()
        assert streams["control"]["out.weight"].any()


def test_option_two_needs_plain_sgd():
    for rule in (SGD(0.1, momentum=0.9), AdamW(), SGD(0.1, weight_decay=0.1, cautious=True)):
        with pytest.raises(
            CompositionError, match=r"Scaffold\(option='II'\): reads the mean gradient .* got .*option='I'"
        ):
            Scaffold(LocalTraining(rule))
        Scaffold(LocalTraining(rule), option="I")
    with pytest.raises(ValueError, match=r"Scaffold\(option='III'\): must be 'I' or 'II', got 'III'"):
        Scaffold(option="III")


def test_option_one_needs_the_whole_model():
    population = parabolas()
    star = star_of(
        LocalOnly(Scaffold(full_batch(1), "I"), names=("w",)), number_model(), population, everybody(population, 1)
    )
    _, log = run(star)
    assert "Scaffold(option='I'): takes the gradient of the whole model" in log.of("lost")[0]["reason"]


def test_without_controls_it_is_fedavg():
    """The first round, when all controls are 0."""
    population = parabolas()
    ours, theirs = (
        trajectory(algorithm, 1, population)
        for algorithm in (Scaffold(full_batch(5)), FedProx(0.0, full_batch(5), "uniform"))
    )
    assert ours == theirs


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_after_one_step_the_control_is_the_gradient_whatever_the_rate_was(decay):
    """Of a (w - b)^2 / 2 at the w of the last round, which is a (w - b)."""
    a, b = (1.0, 3.0), (0.0, 4.0)
    population = parabolas(a, b)
    local = LocalTraining(SGD(0.1), batch_size=0, steps=1, lr_decay=decay)
    star = star_of(Scaffold(local), number_model(), population, everybody(population, 4))
    _, log = run(star, lambda world: (float(server(world).streams["model"]["w"]), controls(world, (0, 1))[1]))
    for (w, _), (_, own) in zip(log.seen, log.seen[1:], strict=False):
        assert own == pytest.approx({i: a[i] * (w - b[i]) for i in (0, 1)}, abs=1e-12)


class Dropped(nn.Module):
    """Half of the inputs are left out; one parameter is not used."""

    def __init__(self):
        super().__init__()
        self.out, self.unused = nn.Linear(32, 2), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.out(nn.functional.dropout(x, 0.5, self.training))


def test_the_gradient_of_option_one_has_its_own_dropout_for_each_task():
    model = Model(Dropped, CrossEntropy())
    params = model.init(3)
    site = Site(0, model, like(params), Examples({"x": torch.ones(2, 32), "y": torch.tensor([0, 0])}), Profile(), 3)

    def control(version):
        task, algorithm = Task(0, version, 0, 0), Scaffold(full_batch(1), "I")
        zeros = {n: torch.zeros_like(t) for n, t in params.items()}
        held = {"model": params, "control": zeros}
        own = algorithm.client_init(site)
        updates, _ = algorithm.finish(held, Trained(zeros, 1, 0.0), site.whole(), task, own, site)
        return updates["control"].values()

    torch.manual_seed(1)
    first, state = control(0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(control(0)["out.weight"], first["out.weight"])
    assert not torch.equal(control(1)["out.weight"] == 0, first["out.weight"] == 0)
    assert first["unused"].tolist() == [0.0, 0.0, 0.0]
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)

"""FedHyper-SL and -CL through the real server and simulator, against plain loops."""

from __future__ import annotations

import pytest
import torch

from partwise.algorithms import (
    CrossTier,
    FedAvg,
    FedHyper,
    FedProx,
    FedRank,
    FedSubAvg,
    HeteroFL,
    LocalOnly,
    Mixing,
    Scaffold,
)
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole
from partwise.core.model import Params
from partwise.core.population import Census
from partwise.core.transform import Chain
from partwise.core.update import Update
from partwise.local import SGD, HyperStep, LocalTraining
from partwise.testing.examples import example_model, example_sites
from partwise.transforms import HyperRate
from toy_star import Clients, Cohorts, full_batch, number_model, parabolas, run, server, star_of

A, B, COHORTS = (1.0, 3.0, 0.7), (0.0, 4.0, -2.0), ((0, 1, 2), (1, 2), (0, 2), (0, 1, 2), (1,), (0, 1))


def clip(x, gamma):
    return max(1 / gamma, min(gamma, x))


def oracle(lr, steps, *, sl=False, cl=False, g=False, gamma=10.0, rate=1.0, mu=0.0, by_steps=False, cosine=False):
    """Every round in plain floats: w, s and alpha."""

    def along(x, y):
        return x * y if not cosine else float((x * y > 0) - (x * y < 0))

    w, s, alpha, last, participants, raw = 0.3, 1.0, 1.0, 0.0, 1, None
    path = []
    for cohort in COHORTS:
        changes = []
        for i in cohort:
            v, before, b = w, None, 1.0
            for _ in range(steps):
                grad = A[i] * (v - B[i]) + mu * (v - w)
                if cl:
                    here = 0.0 if before is None else along(grad, before)
                    b = clip(b + rate * (here - along(grad, last) / (steps if by_steps else participants)), gamma)
                    before = grad
                v -= lr * (s if sl else 1.0) * b * grad
            changes.append(v - w)
        total = sum(changes) / len(changes)
        if g:
            alpha = alpha if raw is None else clip(alpha + total * raw, 3.0)
            raw, total = total, alpha * total
        w += total
        if sl:
            s = clip(s + rate * along(total, last), gamma)
        last, participants = total, len(cohort)
        path.append((w, s, alpha))
    return path


def played(algorithm, chain=()):
    star = star_of(
        algorithm, number_model(0.3), parabolas(A, B), Cohorts(COHORTS), server_chain={"model": Chain(chain)}
    )

    def look(world):
        node = server(world)
        alpha = node.chains["model"][0][0] if chain else 1.0
        return float(node.streams["model"]["w"]), float(node.streams["rate"]["server"]), alpha

    _, log = run(star, look)
    assert not log.of("lost")
    return log.seen


def close(got, wanted):
    assert [x for row in got for x in row] == pytest.approx([x for row in wanted for x in row], abs=1e-12)


LOCAL = full_batch(3, lr=0.05)
AVERAGE = FedAvg(LOCAL, "uniform")


def test_rate_of_the_server():
    got = played(FedHyper(AVERAGE))
    close(got, oracle(0.05, 3, sl=True))
    factors = [s for _, s, _ in got]
    assert factors[0] == 1
    assert len(set(factors)) == 6


@pytest.mark.parametrize("by", ["participants", "steps"])
def test_rate_of_the_client(by):
    got = played(FedHyper(AVERAGE, server_rate=False, client_rate=True, divide_by=by))
    close(got, oracle(0.05, 3, cl=True, by_steps=by == "steps"))


def test_rates_of_both_bounded_slowed_and_with_cosines():
    for settings in ({"gamma": 1.3}, {"rate": 0.2}, {"normalize": True, "rate": 0.1}):
        got = played(FedHyper(AVERAGE, True, True, **settings))
        asked = {"cosine" if k == "normalize" else k: v for k, v in settings.items()}
        close(got, oracle(0.05, 3, sl=True, cl=True, **asked))


def test_paper_s_combination_and_all_three():
    """G in the server's chain with CL; then SL too. What the server added, alpha D, is what the next round sees."""
    close(played(FedHyper(AVERAGE, False, True), (HyperRate(),)), oracle(0.05, 3, cl=True, g=True))
    close(played(FedHyper(AVERAGE, True, True), (HyperRate(),)), oracle(0.05, 3, sl=True, cl=True, g=True))


def test_around_fedprox():
    """The pull is part of the gradient whose alignment counts."""
    got = played(FedHyper(FedProx(0.8, LOCAL, "uniform"), True, True))
    close(got, oracle(0.05, 3, sl=True, cl=True, mu=0.8))


@pytest.mark.parametrize("settings", [{"gamma": 1.0}, {"rate": 0.0}])
def test_bound_of_one_is_the_algorithm_inside_to_the_bit(settings):
    star = star_of(AVERAGE, number_model(0.3), parabolas(A, B), Cohorts(COHORTS))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert [w for w, _, _ in played(FedHyper(AVERAGE, True, True, **settings))] == log.seen


# submodels


def stack(algorithm, cohorts, profiles=None):
    """A table and two layers; what the server holds in the end, and the messages that were recorded."""
    sites = example_sites(example_model())
    population = Clients([s.data.columns() for s in sites], {s.client: s.profile for s in sites})
    states, log = run(star_of(algorithm, example_model(), population, Cohorts(cohorts), seed=3), server)
    assert not log.of("lost")
    assert not log.of("refused")
    return states


def test_last_aggregate_is_zero_where_nobody_held():
    states = stack(FedHyper(FedSubAvg("count", LocalTraining(SGD(0.5), 0)), client_rate=True), ((0, 2), (1,)))
    direction = states[-1].streams["direction"]
    touched = [row for row in range(9) if direction["table.weight"][row].any()]
    assert touched == [2]  # client 1's only one; those of the round before are forgotten
    assert direction["out.weight"].any()


def test_a_cosine_is_that_of_whole_aggregates():
    """D = (2, 0) and D' = (3, 4): 6 / (2 * 5)."""
    algorithm, params = FedHyper(FedSubAvg("count"), normalize=True), {"E": torch.zeros(2, 1, dtype=torch.float64)}
    state = algorithm.init(params, Census(1))
    rows = {at: Rows({"E": (2, 1)}, {"E": torch.tensor(at)}) for at in ((0, 1), (0,))}
    for at, value in (((0, 1), [[3.0], [4.0]]), ((0,), [[2.0]])):
        total = Update(rows[at], {"E": torch.tensor(value, dtype=torch.float64)})
        state = algorithm.commit(state, {"model": total}, ())
    assert float(state["rate"]["server"]) == pytest.approx(1.6, abs=1e-12)
    assert state["model"]["E"].flatten().tolist() == [5.0, 4.0]


@pytest.mark.parametrize(
    "inner",
    [
        FedSubAvg("heat", LocalTraining(SGD(0.5), 0, epochs=2)),
        HeteroFL(LocalTraining(SGD(0.5), 0, epochs=2)),
        LocalOnly(FedAvg(LocalTraining(SGD(0.5), 0, epochs=2)), names=("hidden.bias",)),
        Scaffold(LocalTraining(SGD(0.5), 0, epochs=2), "I", submodel=True),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_clients_see_the_part_they_hold(inner):
    algorithm = FedHyper(inner, client_rate=True)
    states = stack(algorithm, ((0, 1, 2), (0, 1, 2), (2, 0)))
    node = states[-1]
    assert {"model", "direction", "rate"} <= node.streams.keys()
    assert float(node.streams["rate"]["participants"]) == 2
    for site in example_sites(example_model()):
        own, task = states[site.client].own if site.client in states else None, Task(9, 3, 0, 0)
        index = algorithm.select(task, own, site)
        asked = algorithm.fetch(index, task, own, site)
        held = {stream: at.gather(node.streams[stream]) for stream, at in asked.items()}
        plan = algorithm.plan(held, index, task, own, site)
        assert isinstance(plan.optimizer, HyperStep)
        assert shapes(plan.optimizer.direction) == shapes(held["model"])
        assert plan.optimizer.share == 0.5
        assert plan.optimizer.lr == pytest.approx(0.5 * float(node.streams["rate"]["server"]))
    alone = stack(inner, ((0, 1, 2), (0, 1, 2), (2, 0)))[-1]
    same = stack(FedHyper(inner, client_rate=True, gamma=1.0), ((0, 1, 2), (0, 1, 2), (2, 0)))[-1]
    assert all(torch.equal(same.streams["model"][n], t) for n, t in alone.streams["model"].items())
    assert not all(torch.equal(node.streams["model"][n], t) for n, t in alone.streams["model"].items())


def shapes(params: Params):
    return {name: tuple(t.shape) for name, t in params.items()}


def test_inside_an_algorithm_that_keeps_parameters_at_home():
    inner = FedHyper(FedAvg(LocalTraining(SGD(0.5), 0)), client_rate=True)
    states = stack(LocalOnly(inner, names=("out.bias",)), ((0, 1, 2), (0, 1)))
    assert not states[-1].streams["direction"]["out.bias"].any()
    assert states[0].own.value["out.bias"].shape == (2,)


def test_only_what_is_needed_goes_down():
    site = example_sites(example_model())[0]

    def asked(algorithm):
        task = Task(0, 0, 0, 0)
        index = algorithm.select(task, algorithm.client_init(site), site)
        return index, algorithm.fetch(index, task, algorithm.client_init(site), site)

    index, streams = asked(FedHyper(FedSubAvg()))
    assert streams.keys() == {"model", "rate"}
    assert (streams["model"], streams["rate"].shapes) == (index, {"server": ()})
    index, streams = asked(FedHyper(Scaffold(option="I", submodel=True), False, True))
    assert streams.keys() == {"model", "control", "direction", "rate"}
    assert streams["direction"] is streams["control"] is index
    assert streams["rate"].shapes == {"participants": ()}
    assert asked(FedHyper(FedAvg(), False, True, divide_by="steps"))[1].keys() == {"model", "direction"}
    assert isinstance(asked(FedHyper(FedAvg()))[1]["model"], Whole)


def test_whether_clients_use_models_of_their_own_is_up_to_the_algorithm_inside():
    assert not FedHyper(FedAvg()).is_personal
    assert FedHyper(LocalOnly(FedAvg())).is_personal
    assert LocalOnly(FedHyper(FedAvg())).is_personal


# what does not fit


@pytest.mark.parametrize("inner", [Scaffold(), LocalOnly(Scaffold())])
def test_an_algorithm_that_reads_gradients_off_its_steps_is_refused(inner):
    name = type(inner).__name__
    with pytest.raises(CompositionError, match=rf"FedHyper\({name}\): changes the learning rate, .* option='I'"):
        FedHyper(inner)
    FedHyper(Scaffold(option="I"))


def test_what_is_no_step_of_the_model_is_refused():
    with pytest.raises(
        CompositionError, match=r"FedHyper\(CrossTier\): works on what clients changed, got an algorithm"
    ):
        FedHyper(CrossTier(AVERAGE))
    with pytest.raises(CompositionError, match=r"FedHyper\(FedRank\): works on what clients send of the model, got an"):
        FedHyper(FedRank())
    FedHyper(Mixing(AVERAGE))  # whose aggregate is a step


def test_one_inside_another_is_refused():
    star = star_of(FedHyper(FedHyper(AVERAGE), False, True), number_model(), parabolas(), Cohorts(((0,),)))
    with pytest.raises(
        CompositionError, match=r"FedHyper\(FedHyper\): needs the streams .* got \['direction', 'rate'\]"
    ):
        run(star)


def test_messages():
    with pytest.raises(ValueError, match=r"FedHyper\(server_rate=False, client_rate=False\): must adapt a rate"):
        FedHyper(AVERAGE, server_rate=False)
    with pytest.raises(ValueError, match=r"FedHyper\(gamma=0\.5\): must be finite and at least 1, got 0\.5\. 10 is"):
        FedHyper(AVERAGE, gamma=0.5)
    with pytest.raises(ValueError, match=r"FedHyper\(rate=-0\.1\): must be finite and at least 0, got -0\.1\."):
        FedHyper(AVERAGE, rate=-0.1)
    with pytest.raises(ValueError, match=r"FedHyper\(divide_by='K'\): must be one of participants, steps\."):
        FedHyper(AVERAGE, divide_by="K")

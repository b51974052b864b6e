from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import strategies
from partwise.aggregators import Median
from partwise.algorithms import FedAvg, FedProx, FedSubAvg, HeteroFL, LocalOnly, Mixing
from partwise.algorithms.mixing import Differences, ended
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError
from partwise.core.index import Coords, Rows, Whole, shapes_of
from partwise.core.mean import Mean
from partwise.core.population import Profile
from partwise.core.update import Update
from partwise.schedulers import FedAsync
from partwise.schedulers.staleness import Constant
from toy_star import everybody, full_batch, number_model, parabolas, run, server, star_of


def mixed(params, updates, scales, inner=None):
    """The parameters after these end values were mixed in."""
    rule = Differences() if inner is None else Differences(inner)
    step, _ = rule.reduce(sum_updates(updates, params, scales), (), params)
    after = {name: t.clone() for name, t in params.items()}
    step.index.scatter_add_(after, step.values())
    return after


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_example_b_a_submodel():
    """w = (1, 1, 1, 1), S = {0, 2}, x = (3, 5), a = 0.5 -> (2, 1, 3, 1); asynchrony.md, section 1, part 6."""
    params = {"w": torch.ones(4)}
    update = Update(Coords({"w": (4,)}, {"w": torch.tensor([0, 2])}), {"w": torch.tensor([3.0, 5.0])}, weight=7.0)
    assert mixed(params, [update], [0.5])["w"].tolist() == [2, 1, 3, 1]


def test_example_c_the_proximal_client():
    """f = (x - 4)² / 2, rho = 1, rate 0.1, from 0, two steps -> 0.72; without the term 0.76."""
    for algorithm, found in ((FedProx(1.0, full_batch(2)), 0.72), (FedAvg(full_batch(2)), 0.76)):
        population = parabolas(a=(1.0,), b=(4.0,))
        scheduler = FedAsync(1.0, Constant(), concurrency=1, versions=1)
        star = star_of(Mixing(algorithm), number_model(), population, scheduler)
        _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
        assert log.seen == [pytest.approx(found, abs=1e-12)]


def test_several_are_mixed_by_weight_and_scale_per_coordinate():
    """w = 10; x = 1 of weight 2 and scale 1/2 on both rows, x = 4 of weight 3 and scale 1/4 on the second alone."""
    params = {"E": torch.full((2, 1), 10.0, dtype=torch.float64)}
    shapes = {"E": (2, 1)}
    one = Update(Rows(shapes, {"E": None}), {"E": double(1, 1).reshape(2, 1)}, 2.0)
    two = Update(Rows(shapes, {"E": torch.tensor([1])}), {"E": double(4).reshape(1, 1)}, 3.0)
    by_cohort = mixed(params, [one, two], [0.5, 0.25], Mean("cohort"))
    first, second = 2 * 0.5 * (1 - 10), 2 * 0.5 * (1 - 10) + 3 * 0.25 * (4 - 10)
    assert by_cohort["E"].flatten().tolist() == pytest.approx([10 + first / 5, 10 + second / 5])
    by_holders = mixed(params, [one, two], [0.5, 0.25])
    damping = (2 * 0.5 + 3 * 0.25) / 5
    expected = [10 + damping * first / 1.0, 10 + damping * second / 1.75]
    assert by_holders["E"].flatten().tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(strategies.indices(), st.floats(1e-3, 1), st.integers(0, 2**31), st.sampled_from([0.25, 1.0, 37.0]))
def test_each_coordinate_ends_between_the_model_and_the_client_and_others_do_not_move(drawn, alpha, seed, weight):
    draw = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(t.shape, generator=draw, dtype=torch.float64) * 10 for name, t in strategies.params().items()
    }
    like = drawn.index.gather(params)
    ends = {name: torch.randn(t.shape, generator=draw, dtype=torch.float64) * 10 for name, t in like.items()}
    after = mixed(params, [Update(drawn.index, ends, weight)], [alpha])
    for name, before in params.items():
        flat, now = before.flatten().tolist(), after[name].flatten().tolist()
        held = (
            dict(zip(drawn.positions.get(name, ()), ends[name].flatten().tolist(), strict=True)) if name in ends else {}
        )
        for at, (w, found) in enumerate(zip(flat, now, strict=True)):
            if at not in held:
                assert found == w
            else:
                slack = 1e-14 * (abs(w) + abs(held[at]))
                assert min(w, held[at]) - slack <= found <= max(w, held[at]) + slack
                assert found == pytest.approx((1 - alpha) * w + alpha * held[at], abs=1e-12)


def test_mixing_is_not_adding_once_the_model_has_moved():
    """Two clients from w = 0 with one step of rate 0.1 end at 0.4 and 1.2; alpha is 1/2."""
    population = parabolas(a=(1.0, 3.0), b=(4.0, 4.0))
    population.profiles = {0: Profile(1.0), 1: Profile(1.5)}
    for wrap, found in ((Mixing, [0.2, 0.7]), (lambda inner: inner, [0.2, 0.8])):
        scheduler = FedAsync(0.5, Constant(), concurrency=2, versions=2)
        star = star_of(wrap(FedAvg(full_batch(1))), number_model(), population, scheduler)
        _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
        assert log.seen == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("inner", [FedAvg(full_batch(2)), FedSubAvg("count", full_batch(2)), HeteroFL(full_batch(2))])
def test_rounds_of_fresh_replies_are_those_of_the_algorithm_inside(inner):
    population = parabolas(a=(1.0, 3.0, 0.5), b=(0.0, 4.0, -2.0), sizes=(2, 5, 1))
    seen = []
    for algorithm in (inner, Mixing(inner), Mixing(LocalOnly(inner))):
        star = star_of(algorithm, number_model(1.5), population, everybody(population, 4))
        seen.append(run(star, lambda world: float(server(world).streams["model"]["w"]))[1].seen)
    assert seen[1] == pytest.approx(seen[0], abs=1e-12)
    assert seen[2] == pytest.approx(seen[0], abs=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        CompositionError, match=r"Differences\(Median\(.*\)\): takes the difference of a sum, got .* Use a"
    ):
        Differences(Median())
    params = {"w": torch.zeros(3)}
    whole, other = Whole(shapes_of(params)), Whole(shapes_of(params))
    with pytest.raises(CompositionError, match=r"Mixing\(.*\): sends what a client ended with, on what it was sent"):
        ended(Mixing(FedAvg()), params, Update(other, params), whole, params)


def test_an_aggregator_of_changes_is_refused():
    """From 1, clients that end at 1 leave the model at 1; the mean of what they ended with, added to it, is 2."""
    population, model = parabolas(a=(1.0, 1.0), b=(1.0, 1.0)), number_model(1.0)
    for rule in (Mean("cohort"), Median()):
        with pytest.raises(
            CompositionError, match=r"Mixing\(.*: has clients send what they ended with, got M.* Name a"
        ):
            star_of(
                Mixing(FedAvg(full_batch(1))), model, population, everybody(population, 1), aggregators={"model": rule}
            )
    right = {"model": Differences(Mean("cohort"))}
    star = star_of(Mixing(FedAvg(full_batch(1))), model, population, everybody(population, 1), aggregators=right)
    assert run(star, lambda world: float(server(world).streams["model"]["w"]))[1].seen == [1.0]

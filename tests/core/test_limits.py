"""Noise that would not hide one client is refused; one client moves the aggregate by at most the sensitivity."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch

from partwise.aggregators import FixedMean, Krum, Mean
from partwise.algorithms import FedAvg, FedLaAvg, FedProx, FedSubAvg, LocalOnly, Scaffold
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole
from partwise.core.limits import Limit, stages
from partwise.core.rng import generator
from partwise.core.transform import Identity, chain
from partwise.core.update import Update, map_values, norm
from partwise.transforms import (
    CapWeight,
    Clip,
    ErrorFeedback,
    GaussianNoise,
    Quantize,
    RandomK,
    Scale,
    ServerSGD,
    TopK,
    TreeNoise,
)
from toy_star import everybody, full_batch, number_model, parabolas, star_of

NOISE = GaussianNoise(1.0, sensitivity=0.5)


@dataclass(frozen=True)
class Doubled:
    """A transform from outside that says nothing of limits."""

    def init(self, params):
        return ()

    def apply(self, update, state, rng):
        return map_values(update, lambda v: v * 2), state


def star(client=(), server=(NOISE,), aggregator=None, algorithm=None):
    population = parabolas()
    aggregators = {"model": aggregator or FixedMean(cohort=2.0)}
    chains = {"client_chain": {"model": chain(*client)}, "server_chain": {"model": chain(*server)}}
    made = algorithm or FedAvg(full_batch(1))
    return star_of(made, number_model(), population, everybody(population, 1), aggregators=aggregators, **chains)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"client": [CapWeight()]},
            (
                "GaussianNoise(noise_multiplier=1.0, sensitivity=0.5, randomness=SimulatedRandomness()): needs a clip "
                "in front of it in stream 'model', got updates of any size, which no noise hides. Put Clip(max_norm)"
            ),
        ),
        (
            {"client": [Clip(1.0)]},
            (
                "FixedMean(cohort=2.0, max_weight=1.0): needs weights of at most 1 in stream 'model', got any: a "
                "client could move the aggregate by its weight. Put CapWeight(1) into the client chain."
            ),
        ),
        ({"client": [Clip(1.0), CapWeight(3.0)]}, "needs weights of at most 1 in stream 'model', got 3"),
        (
            {"client": [Clip(1.5), CapWeight()]},
            (
                "must be made for as far as one client can move stream 'model', got sensitivity 0.5 where it is 0.75. "
                "Set sensitivity=0.75."
            ),
        ),
        ({"client": [Clip(1.0), CapWeight(), Quantize()]}, "needs weights of at most 1"),
        ({"client": [Clip(1.0), Quantize(), CapWeight()]}, "needs a clip in front of it"),
        ({"client": [Clip(1.0), ErrorFeedback(TopK(k=1)), CapWeight()]}, "needs a clip in front of it"),
        ({"client": [Clip(1.0), Doubled(), CapWeight()]}, "needs a clip in front of it"),
        ({"client": [Clip(1.0), Scale(3.0), CapWeight()]}, "got sensitivity 0.5 where it is 1.5"),
        (
            {"client": [Clip(1.0), CapWeight()], "aggregator": Mean("cohort")},
            (
                "needs an aggregate of stream 'model' whose divisor does not depend on who takes part, got "
                "Mean(by='cohort', at_least=0.0). Use FixedMean(cohort=...)."
            ),
        ),
        ({"client": [Clip(1.0), CapWeight()], "aggregator": Mean("holders")}, "whose divisor does not depend on who"),
        ({"client": [Clip(1.0), CapWeight()], "aggregator": Mean("expected")}, "whose divisor does not depend on who"),
        ({"client": [Clip(1.0), CapWeight()], "aggregator": Krum(f=1)}, "whose divisor does not depend on who"),
        (
            {"client": [Clip(1.0), CapWeight()], "server": [ServerSGD(), NOISE]},
            "must come first in the server chain of stream 'model', got ServerSGD(lr=1.0, momentum=0.9, lazy=True, ",
        ),
        ({"client": [NOISE], "server": []}, "needs a clip in front of it"),
        ({"client": [Clip(2.0), NOISE], "server": []}, "got sensitivity 0.5 where it is 2"),
    ],
)
def test_noise_that_does_not_hide_a_client_is_refused_when_built(parts, message):
    with pytest.raises(CompositionError, match=re.escape(message)):
        star(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"client": [Clip(1.0), CapWeight()]},
        {"client": [CapWeight(), Clip(1.0), TopK(k=1)]},
        {"client": [Clip(0.1), CapWeight()]},  # more noise than is needed
        {"client": [Clip(1.0), CapWeight(0.5)]},
        {"client": [Clip(5.0), CapWeight(5.0)], "aggregator": FixedMean(cohort=10.0, max_weight=5.0)},
        {"client": [Clip(1.0)], "algorithm": FedAvg(full_batch(1), weights="uniform")},
        {"client": [Clip(1.0)], "algorithm": LocalOnly(FedProx(0.1, full_batch(1), weights="uniform"), names=())},
        {"client": [Clip(1.0), CapWeight()], "server": [NOISE, ServerSGD()]},
        {"client": [Clip(1.0), CapWeight()], "server": [chain(chain(NOISE), ServerSGD())]},
        {"client": [Clip(0.5), NOISE], "server": []},
        {"client": [Identity()], "server": [ServerSGD()], "aggregator": Mean("cohort")},
    ],
)
def test_noise_that_does_is_not(parts):
    star(**parts)


def test_noise_on_one_stream_does_not_hide_what_another_tells():
    population = parabolas()
    parts = {
        "aggregators": {"model": FixedMean(2.0), "control": FixedMean(2.0)},
        "client_chain": {s: chain(Clip(1.0), CapWeight()) for s in ("model", "control")},
    }
    made = Scaffold(full_batch(1)), number_model(), population, everybody(population, 1)
    with pytest.raises(CompositionError, match=re.escape("hides a client in stream 'model', got none in ['control']")):
        star_of(*made, server_chain={"model": chain(NOISE)}, **parts)
    star_of(*made, server_chain={s: chain(NOISE) for s in ("model", "control")}, **parts)


def test_limits_of_chains():
    assert Limit() == Limit(math.inf, math.inf)
    clipped = Clip(3.0).limited(Limit())
    assert CapWeight(2.0).limited(Clip(5.0).limited(clipped)) == Limit(3.0, 2.0)
    assert NOISE.limited(clipped) == Limit(math.inf, 1.0)
    assert Scale(0.0).limited(Limit()).norm == 0.0
    assert Scale(-0.5).limited(clipped).norm == 1.5
    assert RandomK(0.25, unbiased=True).limited(clipped).norm == 12.0  # what is sent is divided by 1/4
    assert RandomK(0.25).limited(clipped).norm == 3.0
    assert TreeNoise(1.0, 0.1).limited(clipped) == Limit(math.inf, 1.0)
    assert TreeNoise(0.0, 0.1).limited(clipped) == Limit(3.0, 1.0)
    assert [type(s).__name__ for s in stages(chain(chain(Clip(1.0), Scale(2.0)), CapWeight()))] == [
        "Clip",
        "Scale",
        "CapWeight",
    ]


def test_algorithms_whose_model_is_more_than_the_aggregate_say_so():
    uniform = FedAvg(weights="uniform")
    assert FedAvg().only_adds
    assert FedSubAvg().only_adds
    assert LocalOnly(FedAvg()).only_adds
    assert not LocalOnly(FedLaAvg()).only_adds
    assert not FedLaAvg().only_adds
    assert uniform.limit("model") == LocalOnly(uniform).limit("model") == Limit(weight=1.0)
    assert FedAvg().limit("model") == Scaffold().limit("model") == Limit()


# ---- what one client can do ----


def draw(seed, size=5, scale=1.0):
    return torch.randn(size, generator=generator(seed, "values"), dtype=torch.float64) * scale


def sent(seed, weight, norm_of=None):
    update = Update(Whole({"w": (5,)}), {"w": draw(seed, scale=norm_of or 10.0 ** (seed % 5 - 2))}, weight)
    for part in (Clip(2.0), CapWeight(3.0)):
        update, _ = part.apply(update, (), torch.Generator())
    return update


PARAMS = {"w": torch.zeros(5, dtype=torch.float64)}


def aggregate(updates):
    fixed = FixedMean(cohort=4.0, max_weight=3.0)
    got, _ = fixed.reduce(sum_updates(updates, PARAMS), (), PARAMS)
    return got.values().get("w", torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("replaced", range(6))
def test_leaving_one_client_out_moves_the_noiseless_aggregate_by_at_most_the_sensitivity(replaced):
    updates = [sent(seed, 10.0**seed) for seed in range(6)]
    before = aggregate(updates)
    without = aggregate([u for at, u in enumerate(updates) if at != replaced])
    assert torch.linalg.vector_norm(before - without) <= 2.0 / 4.0 * (1 + 1e-12)
    for seed in range(20, 60):  # by any other vector: there and back
        updates[replaced] = sent(seed, 10.0 ** (seed % 7))
        moved = torch.linalg.vector_norm(aggregate(updates) - before)
        assert moved <= 2 * 2.0 / 4.0 * (1 + 1e-12)
    biggest = [u for u in updates if float(u.weight) == 3.0 and norm(u) > 1.999]
    assert biggest  # so that the bound is reached, not only kept


def test_the_bound_is_reached():
    heavy = sent(3, 1e6, norm_of=1e4)
    assert torch.linalg.vector_norm(aggregate([heavy])) == pytest.approx(0.5, rel=1e-9)


def test_with_a_divisor_that_counts_who_came_one_client_moves_it_much_further():
    """90 % of the weight of ten clients: the noise for a tenth of the clip norm is a ninth of what is needed."""
    others = [Update(Whole({"w": (5,)}), {"w": torch.zeros(5, dtype=torch.float64)}, 1.0) for _ in range(9)]
    loud, _ = Clip(2.0).apply(Update(Whole({"w": (5,)}), {"w": torch.full((5,), 1e3).double()}, 81.0), (), None)
    moved = Mean("cohort").reduce(sum_updates([*others, loud], PARAMS), (), PARAMS)[0]
    as_if = 2.0 / 10
    assert as_if / norm(moved) == pytest.approx(0.111, abs=5e-4)


def test_what_nobody_holds_is_left_alone_and_nothing_is_summed_to_nothing():
    fixed = FixedMean(cohort=4.0)
    params = {"E": torch.zeros(6, 2)}
    update = Update(Rows({"E": (6, 2)}, {"E": torch.tensor([1, 4])}), {"E": torch.ones(2, 2)})
    got, _ = fixed.reduce(sum_updates([update], params), (), params)
    assert got.index.rows["E"].tolist() == [1, 4]
    assert got.values()["E"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    nothing, _ = fixed.reduce(sum_updates([], params), (), params)
    assert nothing.values() == {}


@pytest.mark.parametrize("name", ["cohort", "max_weight"])
def test_a_divisor_that_divides_by_nothing_is_refused(name):
    with pytest.raises(ValueError, match=rf"FixedMean\({name}=0.0\): must be finite and above 0, got 0.0"):
        FixedMean(**{"cohort": 1.0, name: 0.0})

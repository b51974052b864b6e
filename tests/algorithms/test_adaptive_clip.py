"""A clip norm that follows the updates: the published rule, what travels, and what a client can do."""

from __future__ import annotations

import math

import pytest
import torch

from partwise.aggregators import FixedMean
from partwise.algorithms import AdaptiveClip, FedAvg, Scaffold
from partwise.algorithms.adaptive_clip import next_norm
from partwise.core.errors import CompositionError
from partwise.core.index import Coords, Whole
from partwise.core.limits import Limit
from partwise.core.transform import chain
from partwise.core.update import Update
from partwise.transforms import GaussianNoise
from toy_star import everybody, full_batch, number_model, parabolas, run, server, star_of


def test_the_update_of_the_norm_as_published():
    assert next_norm(1.0, 0.9) == pytest.approx(0.923116, abs=1e-6)
    assert next_norm(1.0, 0.5) == 1.0
    assert next_norm(1.0, 0.1) == pytest.approx(1.083287, abs=1e-6)


def oracle(a, b, rounds, *, lr, first, quantile, rate):
    """One number w; client i takes one step on a/2 (w - b)²."""
    w, C, norms, values = 0.0, first, [], []
    for _ in range(rounds):
        updates = [-lr * ai * (w - bi) for ai, bi in zip(a, b, strict=True)]
        clipped = [u * min(1.0, C / abs(u)) for u in updates]
        short = sum(abs(u) <= C for u in updates) / len(updates)
        w += sum(clipped) / len(clipped)
        C *= math.exp(-rate * (short - quantile))
        values.append(w)
        norms.append(C)
    return values, norms


@pytest.mark.parametrize("fixed", [False, True])
def test_it_does_what_plain_loops_do(fixed):
    a, b = (1.0, 3.0, 0.5, 2.0), (0.3, 4.0, -7.0, 1.0)
    algorithm = AdaptiveClip(FedAvg(full_batch(1, lr=0.2)), 0.4, quantile=0.7, rate=0.3)
    population = parabolas(a, b, sizes=(1, 9, 2, 5))  # all count alike, whatever they have
    means = {"model": FixedMean(4.0), "clip": FixedMean(4.0)} if fixed else {}
    star = star_of(algorithm, number_model(), population, everybody(population, 9), aggregators=means)

    def look(world):
        streams = server(world).streams
        return float(streams["model"]["w"]), float(streams["clip"]["norm"])

    _, log = run(star, look)
    values, norms = oracle(a, b, 9, lr=0.2, first=0.4, quantile=0.7, rate=0.3)
    assert [w for w, _ in log.seen] == pytest.approx(values, rel=1e-5)
    assert [C for _, C in log.seen] == pytest.approx(norms, rel=1e-5)
    assert len({round(C, 6) for C in norms}) > 4


def test_a_mean_over_the_population_counts_all_clients_alike_too():
    a, b = (1.0, 3.0, 0.5, 2.0), (0.3, 4.0, -7.0, 1.0)
    algorithm = AdaptiveClip(FedAvg(full_batch(1, lr=0.2), weights="unbiased"), 0.4, quantile=0.7, rate=0.3)
    population = parabolas(a, b, sizes=(1, 9, 2, 5))
    star = star_of(algorithm, number_model(), population, everybody(population, 9))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    values, _ = oracle(a, b, 9, lr=0.2, first=0.4, quantile=0.7, rate=0.3)  # where all are asked, it is the mean
    assert log.seen == pytest.approx(values, rel=1e-5)


def test_what_a_client_sends_is_bounded_and_noise_fits_it():
    algorithm = AdaptiveClip(FedAvg(full_batch(1, lr=9.0)), 0.01)
    assert (algorithm.limit("model"), algorithm.limit("clip")) == (Limit(1.0, 1.0), Limit(0.5, 1.0))
    assert algorithm.only_adds
    population = parabolas(b=(50.0, -20.0))
    noises = {"model": chain(GaussianNoise(1e-9, 1 / 2)), "clip": chain(GaussianNoise(1e-9, 0.5 / 2))}
    means = {"model": FixedMean(2.0), "clip": FixedMean(2.0)}
    parts = {"aggregators": means, "server_chain": noises}
    star = star_of(algorithm, number_model(), population, everybody(population, 1), **parts)
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    assert log.seen == pytest.approx([0.0], abs=1e-5)  # +C and -C, as far as each can
    with pytest.raises(CompositionError, match=r"got sensitivity 0\.4 where it is 0\.5"):
        star_of(
            algorithm,
            number_model(),
            population,
            everybody(population, 1),
            aggregators=means,
            server_chain={**noises, "model": chain(GaussianNoise(1.0, 0.4))},
        )


def test_an_update_of_zero_stays_zero_and_is_short():
    algorithm = AdaptiveClip(FedAvg(full_batch(1, lr=0.1)), 2.0)
    population = parabolas(a=(1.0, 1.0), b=(0.0, 0.0))
    star = star_of(algorithm, number_model(), population, everybody(population, 2))
    _, log = run(star, lambda w: (float(server(w).streams["model"]["w"]), float(server(w).streams["clip"]["norm"])))
    assert log.seen == [(0.0, pytest.approx(2 * math.exp(-0.1))), (0.0, pytest.approx(2 * math.exp(-0.2)))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_long_update_is_never_longer_than_one_after_rounding(dtype):
    from partwise.core.algorithm import Algorithm, Site, Task
    from partwise.core.index import Whole
    from partwise.core.model import like
    from partwise.core.plan import Trained
    from partwise.core.population import Profile
    from partwise.core.update import norm

    assert isinstance(FedAvg(), Algorithm)
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        change = {"w": (torch.randn(50, generator=draw) * 10 ** (seed % 7 - 3)).to(dtype)}
        held = {"model": {"w": torch.zeros(50, dtype=dtype)}, "clip": {"norm": torch.tensor(0.37, dtype=torch.float64)}}
        data = parabolas().data(0)
        site = Site(0, number_model(), like(change), data, Profile(), 1)
        trained, index = Trained(change, 1, 0.0, 1), Whole({"w": (50,)})
        updates, _ = AdaptiveClip(FedAvg()).finish(held, trained, index, Task(0, 0, 0, 0), None, site)
        assert norm(updates["model"]) <= 1.0
        assert float(updates["clip"].values()["norm"]) == (0.5 if norm(updates["model"]) < 0.97 else -0.5)


def test_a_norm_that_nobody_tells_of_stays():
    """A stream of one number, of which nothing is kept."""
    part, empty = AdaptiveClip(FedAvg(), 0.37), Coords({"norm": ()}, {"norm": torch.zeros(0, dtype=torch.int64)})
    state = part.init({"w": torch.zeros(2)}, None)
    total = Update(Whole({"w": (2,)}), {"w": torch.ones(2)})
    after = part.commit(state, {"model": total, "clip": Update(empty, {"norm": torch.zeros(0).double()})}, [])
    assert float(after["clip"]["norm"]) == 0.37


def test_what_it_cannot_wrap_is_refused():
    with pytest.raises(CompositionError, match=r"clips the stream 'model', got an algorithm with the streams"):
        AdaptiveClip(Scaffold())
    with pytest.raises(ValueError, match=r"AdaptiveClip\(clip_norm=0.0, quantile=0.5, rate=0.2\): norm and rate"):
        AdaptiveClip(FedAvg(), 0.0)

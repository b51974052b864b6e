"""The discrete Gaussian: its distribution, its sums, and the shares of noise that clients add."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from partwise.aggregators import FixedMean
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError
from partwise.core.index import Rows, Whole
from partwise.core.randomness import SimulatedRandomness, SystemRandomness, uniform_below
from partwise.core.rng import generator
from partwise.core.update import Update, norm
from partwise.experiment.accounting import distributed_rho, noise_of_sums
from partwise.transforms import Clip, DiscreteNoise, FromGrid
from partwise.transforms.discrete import bernoulli_exp, discrete_gaussian, discrete_laplace
from partwise.transforms.distributed import rotate, rounded_norm, rounded_up

SOURCE = SimulatedRandomness()


def rng(seed=1):
    return generator(seed, "discrete")


def gaussian_pmf(variance, reach):
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * variance))
    return x, p / p.sum()


def fits(draws, x, p, sigmas=6.0):
    """Each value's count is within six standard deviations of what it should be.

    Values that are expected fewer than 100 times are counted together: their own counts are far from normal, and
    two of one rare value would fail a right sampler.
    """
    n = len(draws)
    counts = np.array([(draws == int(v)).sum().item() for v in x])
    if counts.sum() != n:
        return False  # beyond the reach, where the distribution has nothing to speak of
    often = n * p >= 100
    counts, p = np.append(counts[often], counts[~often].sum()), np.append(p[often], p[~often].sum())
    return bool((np.abs(counts - n * p) <= sigmas * np.sqrt(n * p * (1 - p)) + 1).all())


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1), Fraction(33, 16), Fraction(9), Fraction(121)])
@pytest.mark.parametrize("source", [SOURCE, SystemRandomness()], ids=["simulated", "system"])
def test_the_sampler_has_the_distribution(variance, source):
    draws = discrete_gaussian(40_000, variance, source, rng())
    assert draws.dtype == torch.int64
    x, p = gaussian_pmf(float(variance), 10 * math.ceil(math.sqrt(variance)))
    assert fits(draws, x, p)
    # and not that of a rounded normal number, where the two lie far beyond six deviations of this sample: at 1/4 a
    # zero has .683 against .786; at 1 they are six and a half deviations apart, and a right sampler could fail
    rounded = np.array(
        [
            0.5 * (math.erf((v + 0.5) / math.sqrt(2 * variance)) - math.erf((v - 0.5) / math.sqrt(2 * variance)))
            for v in x
        ]
    )
    if variance < 1:
        assert not fits(draws, x, rounded)


@pytest.mark.parametrize("variance", [0.25, 0.5, 1.0, 4.0])
def test_its_variance_is_at_most_what_it_is_called(variance):
    x, p = gaussian_pmf(variance, 60)
    exact = float((p * x**2).sum())
    assert exact <= variance * (1 + 1e-12)
    draws = discrete_gaussian(100_000, Fraction(variance), SOURCE, rng()).double()
    assert float(draws.var()) == pytest.approx(exact, rel=0.03)


def test_the_laplace_that_it_is_made_of():
    draws = discrete_laplace(40_000, 3, SOURCE, rng())
    x = np.arange(-60, 61)
    p = np.exp(-np.abs(x) / 3)
    assert fits(draws, x, p / p.sum())


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 7), (1, 3), (7, 7), (9, 4), (30, 7)])
def test_coins(numerator, denominator):
    n = 20_000
    coins = bernoulli_exp(torch.full((n,), numerator), denominator, SOURCE, rng())
    p = math.exp(-numerator / denominator)
    assert abs(float(coins.double().mean()) - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_uniform_numbers_have_every_value_also_the_last():
    draws = uniform_below(5, 10_000, SOURCE, rng())
    assert all(abs((draws == v).sum().item() - 2000) < 5 * 40 for v in range(5))
    assert set(draws.tolist()) == set(range(5))


def test_draws_that_would_favour_small_numbers_are_made_again():
    class Top:
        """The highest bits first."""

        is_simulated = True
        asked = 0

        def normal(self, shape, rng):
            raise AssertionError

        def bits(self, count, rng):
            self.asked += 1
            return torch.full((count,), 2**62 - 1 if self.asked == 1 else 8)

    source = Top()
    assert uniform_below(3, 4, source, rng()).tolist() == [2, 2, 2, 2]
    assert source.asked == 2


def test_variances_that_cannot_be_drawn_exactly_are_refused():
    with pytest.raises(ValueError, match=r"discrete_gaussian\(variance=0\): must be above 0"):
        discrete_gaussian(1, Fraction(0), SOURCE, rng())
    with pytest.raises(ValueError, match=r"DiscreteNoise\(variance=20000000.0\): must be at most 2\*\*24"):
        DiscreteNoise(1.0, 1.0, 2e7)
    with pytest.raises(ValueError, match=r"DiscreteNoise\(granularity=0.0\): must be finite and above 0"):
        DiscreteNoise(1.0, 0.0, 2.0)
    with pytest.raises(ValueError, match=r"FromGrid\(granularity=0.0\): must be finite and above 0"):
        FromGrid(0.0)
    assert len(discrete_gaussian(0, Fraction(3), SOURCE, rng())) == 0


def test_variances_are_never_rounded_down():
    for variance in (0.01, 0.0625, 1.0, 2.3, 900.1, 600_000.5):
        assert variance <= float(rounded_up(variance)) <= variance + 1
    assert rounded_up(2.0) == 2


# ---- sums of discrete Gaussians ----


@pytest.mark.parametrize(
    ("variance", "n", "ratio", "tau"),
    [(1.0, 2, 1.03e-4, 5.17e-4), (0.5, 2, 1.47e-2, 7.19e-2), (1.0, 10, 4.4e-7, 5.44e-4)],
)
def test_the_sum_is_almost_a_discrete_gaussian(variance, n, ratio, tau):
    """By exact convolution, within eight standard deviations of the sum."""
    reach = 60
    _, p = gaussian_pmf(variance, reach)
    total = p
    for _ in range(n - 1):
        total = np.convolve(total, p)
    x, wanted = gaussian_pmf(n * variance, n * reach)
    near = np.abs(x) <= 8 * math.sqrt(n * variance)
    assert np.abs(np.log(total[near] / wanted[near])).max() == pytest.approx(ratio, rel=0.02)
    assert noise_of_sums(variance, n) == pytest.approx(tau, rel=5e-3)
    assert ratio < tau


def test_what_a_sum_costs():
    longest, variance, n, d = 1040.0, 40_000.0, 30, 500
    plain = longest**2 / (n * variance) / 2  # of a Gaussian; tau is nothing here
    assert distributed_rho(longest, variance, n, d) == pytest.approx(plain, rel=1e-9)
    tau = noise_of_sums(0.5, 2)
    by_hand = min(math.sqrt(100 / 1.0 + tau * 2), 10 / 1.0 + tau * 2) ** 2 / 2
    assert distributed_rho(10.0, 0.5, 2, 4) == pytest.approx(by_hand)


# ---- the transform ----

PARAMS = {"E": torch.zeros(9, 5), "b": torch.zeros(100, dtype=torch.float64)}
D = 145


def update(seed, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    value = {"E": torch.randn(9, 5, generator=draw), "b": torch.randn(100, generator=draw).double()}
    made = Update(Whole({n: tuple(t.shape) for n, t in PARAMS.items()}), value)
    return Update(made.index, {n: v * (size / norm(made)) for n, v in value.items()})


@pytest.mark.parametrize("d", [1, 2, 3, 64, 100, 145])
def test_the_rotation_is_orthonormal_and_undone(d):
    x = torch.randn(d, generator=rng(), dtype=torch.float64)
    y = torch.randn(d, generator=rng(2), dtype=torch.float64)
    assert torch.dot(rotate(x, 3), rotate(y, 3)) == pytest.approx(float(torch.dot(x, y)), abs=1e-12)
    assert torch.allclose(rotate(rotate(x, 3), 3, back=True), x, atol=1e-12)
    before = x.clone()
    rotate(x, 3)
    assert torch.equal(x, before)


def test_the_rotation_spreads_a_single_coordinate():
    x = torch.zeros(64, dtype=torch.float64)
    x[5] = 1.0
    assert torch.allclose(rotate(x, 3).abs(), torch.full((64,), 1 / 8).double())
    assert not torch.equal(rotate(x, 3), rotate(x, 4))


def through(updates, part, back, seed=7):
    sent = [part.apply(u, part.init(PARAMS), rng(seed + i))[0] for i, u in enumerate(updates)]
    mean, _ = FixedMean(len(updates)).reduce(sum_updates(sent, PARAMS), (), PARAMS)
    value, _ = back.apply(mean, back.init(PARAMS), rng())
    return sent, value


def test_what_is_sent_are_whole_numbers_in_the_parameters_types():
    sent, _ = through([update(1)], DiscreteNoise(1.0, 1e-3, 25.0), FromGrid(1e-3))
    for name, value in sent[0].values().items():
        assert value.dtype == PARAMS[name].dtype
        assert torch.equal(value, value.round())
    assert sent[0].weight == 1.0


def test_on_a_fine_grid_with_little_noise_the_mean_is_the_mean():
    updates = [update(s, 0.5) for s in range(4)]
    _, value = through(updates, DiscreteNoise(1.0, 1e-6, 1 / 16, 5, bits=31), FromGrid(1e-6, 5))
    for name in PARAMS:
        mean = sum(u.values()[name].double() for u in updates) / 4
        assert torch.allclose(value.values()[name].double(), mean, atol=5e-6), name


def test_the_noise_of_a_sum_has_the_variance_of_all_shares_together():
    zero = Update(Whole({"b": (40_000,)}), {"b": torch.zeros(40_000, dtype=torch.float64)})
    params = {"b": torch.zeros(40_000, dtype=torch.float64)}
    part = DiscreteNoise(1.0, 0.01, 30.0)
    sent = [part.apply(zero, part.init(params), rng(i))[0].values()["b"] for i in range(5)]
    assert float(sum(sent).var()) == pytest.approx(5 * 30.0, rel=0.04)
    assert float((sent[0] * sent[1]).mean()) == pytest.approx(0, abs=5 * 30 / 200)


def test_rounding_is_without_bias():
    """What is longer than it may be is rounded anew, which on this grid is seldom."""
    one = update(3, 0.3)
    part, back = DiscreteNoise(1.0, 0.02, 1 / 16), FromGrid(0.02)
    total = {n: torch.zeros_like(t).double() for n, t in PARAMS.items()}
    for i in range(150):
        _, value = through([one], part, back, seed=1000 + i)
        for n in total:
            total[n] += value.values()[n].double() / 150
    gap = math.sqrt(sum(float(((total[n] - one.values()[n].double()) ** 2).sum()) for n in total))
    assert gap < 2 * 0.02 * math.sqrt(D / 150)


def test_no_rounding_is_longer_than_it_may_be():
    part = DiscreteNoise(1.0, 0.25, 1.0)
    longest = rounded_norm(4.0, D)
    assert longest == pytest.approx(min(4 + math.sqrt(D), math.sqrt(16 + D / 4 + 4 + math.sqrt(D) / 2)))
    lengths = []
    for i in range(50):
        flat = rotate(torch.cat([v.flatten().double() for v in update(i, 1.0).values().values()]), 0) / 0.25
        lengths.append(float(torch.linalg.vector_norm(part._rounded(flat, rng(i)))))
    assert max(lengths) <= longest


def test_longer_updates_are_clipped_and_rows_get_noise_everywhere():
    part = DiscreteNoise(1.0, 1e-4, 1 / 16)
    sent, _ = part.apply(update(1, 50.0), part.init(PARAMS), rng())
    assert norm(sent) == pytest.approx(1.0 / 1e-4, rel=1e-3)
    rows = Update(Rows({"E": (9, 5)}, {"E": torch.tensor([2])}), {"E": torch.ones(1, 5)})
    noisy, _ = DiscreteNoise(1.0, 0.1, 400.0).apply(rows, part.init(PARAMS), rng())
    assert all(float((v != 0).double().mean()) > 0.9 for v in noisy.values().values())


def test_what_is_sent_fits_its_bits_and_is_cut_where_it_does_not():
    part = DiscreteNoise(1.0, 0.01, 400.0, bits=6)
    assert part.bound == 31
    sent, _ = part.apply(update(1), part.init(PARAMS), rng())
    found = torch.cat([v.flatten().double() for v in sent.values().values()])
    assert (float(found.min()), float(found.max())) == (-31.0, 31.0)
    with pytest.raises(ValueError, match=r"DiscreteNoise\(bits=40\): must lie in 2..31, got 40"):
        DiscreteNoise(1.0, 0.01, 4.0, bits=40)


def test_it_comes_behind_a_clip():
    from partwise.core.limits import Limit

    assert DiscreteNoise(1.0, 0.1, 1.0).limited(Clip(1.0).limited(Limit())) == Limit(math.inf, 1.0)
    assert DiscreteNoise(2.0, 0.1, 25.0).noise_multiplier == pytest.approx(0.25)


FINE = [(torch.bfloat16, 1e-3), (torch.float16, 4e-4), (torch.float32, 5e-8)]


@pytest.mark.parametrize(("dtype", "granularity"), FINE)
def test_whole_numbers_that_a_type_does_not_have_are_refused(dtype, granularity):
    """Of 2^8, 2^11 and 2^24 the next one is not a number of the type: what was drawn as noise would be rounded away."""
    params = {"w": torch.zeros(4, dtype=dtype)}
    with pytest.raises(CompositionError, match=rf"whole numbers up to \d+ must be exact .* got 'w' of {dtype}"):
        DiscreteNoise(1.0, granularity, 4.0, bits=31).init(params)
    coarse = DiscreteNoise(1.0, 10 * granularity, 4.0, bits=31)
    update = Update(Whole({"w": (4,)}), {"w": torch.full((4,), 0.3, dtype=dtype)})
    sent = coarse.apply(update, coarse.init(params), rng())[0].values()["w"]
    assert torch.equal(sent, sent.round())

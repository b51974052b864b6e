"""Epsilon equals what was computed independently, published, or follows from a formula."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from partwise.experiment.accounting import (
    gaussian_delta,
    gaussian_epsilon,
    multiplier_for,
    poisson_epsilon,
    without_replacement_epsilon,
    zcdp_epsilon,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("q", "z", "releases", "rdp", "pld"),
    [
        (0.01, 1.0, 1000, 2.101, 1.828),
        (0.01, 0.6, 1000, 8.680, 7.434),
        (0.1, 1.0, 100, 7.904, 7.047),
        (1.0, 5.0, 10, 2.814, 2.594),
        (1.0, 1.0, 1, None, 4.377),
    ],
)
def test_epsilon_of_sampled_gaussian_mechanisms(q, z, releases, rdp, pld):
    pytest.importorskip("dp_accounting")
    found = poisson_epsilon(z, q, releases, DELTA)
    assert found == pytest.approx(pld, rel=1e-3)
    if rdp is not None:
        assert poisson_epsilon(z, q, releases, DELTA, "rdp") == pytest.approx(rdp, rel=1e-3)
        assert found < rdp


def integrated(z, q, releases, epsilon):
    """delta of epsilon, by the privacy loss of one release on a fine grid, and powers of its Fourier transform.

    The loss of a release with the client, over one without: log(1 - q + q e^((2x - 1) / (2 z²))), where x is drawn with
    it; and, the other way round, its negative where x is drawn without.
    """
    step, size = q / z / 32, 1 << 16
    grid = (np.arange(size + 1) - size // 2) * step

    def below(x, mean):
        return torch.special.ndtr(torch.from_numpy((x - mean) / z)).numpy()

    def place(loss):
        inside = np.exp(loss) - (1 - q)
        return np.where(inside > 0, z * z * np.log(np.maximum(inside, 1e-300) / q) + 0.5, -np.inf)

    found = []
    for sign in (1, -1):
        edges = place(sign * (grid - step / 2))
        total = (1 - q) * below(edges, 0) + q * below(edges, 1) if sign == 1 else 1 - below(edges, 0)
        spectrum = np.fft.fft(np.fft.ifftshift(np.diff(total)))
        losses = np.fft.fftshift(np.fft.ifft(spectrum**releases).real)
        above = grid[:-1] > epsilon
        found.append(float((losses * -np.expm1(epsilon - grid[:-1]))[above].sum()))
    return max(found)


@pytest.mark.parametrize(("z", "q", "releases"), [(5.0, 1e-3, 10_000), (2.0, 1e-3, 1000), (1.0, 1e-4, 2000)])
def test_losses_smaller_than_a_step_of_the_grid_are_not_made_larger(z, q, releases):
    """On steps of 1/1000 epsilon came out up to twice as large, and above the bound of `rdp`."""
    pytest.importorskip("dp_accounting")
    found = poisson_epsilon(z, q, releases, DELTA)
    assert integrated(z, q, releases, found) <= DELTA < integrated(z, q, releases, 0.95 * found)
    assert found < poisson_epsilon(z, q, releases, DELTA, "rdp")
    twice = poisson_epsilon(z, q, {1: releases // 2, 2: releases // 2}, DELTA)  # whose losses are of other sizes
    assert found < twice < poisson_epsilon(z, q, {2: releases}, DELTA)


def test_without_sampling_the_same_noise_is_worth_nothing():
    pytest.importorskip("dp_accounting")
    assert poisson_epsilon(1.0, 1.0, 1000, DELTA, "rdp") == pytest.approx(655, abs=2)
    assert poisson_epsilon(1.0, 1.0, 1000, DELTA) == pytest.approx(633.9, abs=0.1)  # exact; the bound is 3 % above it


def test_a_rate_of_one_is_the_gaussian_mechanism_itself():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    library = pld.PLDAccountant()
    library.compose(dp.SelfComposedDpEvent(dp.GaussianDpEvent(5.0), 10))
    assert poisson_epsilon(5.0, 1.0, 10, DELTA) == pytest.approx(library.get_epsilon(DELTA), rel=1e-3)


def test_fixed_size_cohorts_have_another_bound():
    pytest.importorskip("dp_accounting")
    assert without_replacement_epsilon(1.0, 10, 1000, 1000, delta=DELTA) == pytest.approx(3.576, rel=1e-3)
    assert poisson_epsilon(1.0, 0.01, 1000, DELTA) < 3.5


def test_noise_by_the_formula_for_small_epsilon_does_not_keep_large_ones():
    """sqrt(2 ln(1.25/delta))/epsilon, as some programs use it for any epsilon."""

    def really(claimed):
        return gaussian_epsilon(claimed / math.sqrt(2 * math.log(1.25 / DELTA)), DELTA)

    assert really(10) == pytest.approx(10.39, abs=0.01)
    assert really(20) == pytest.approx(25.4, abs=0.1)
    assert really(100) == pytest.approx(300, abs=1)
    assert really(0.5) < 0.5


def test_a_client_with_nine_tenths_of_the_weight():
    assert gaussian_epsilon(1.0, DELTA) == pytest.approx(4.4, abs=0.05)
    assert gaussian_epsilon(9.0, DELTA) == pytest.approx(78, abs=0.5)


def test_analytic_calibration():
    def multiplier(epsilon, delta):
        return multiplier_for(epsilon, lambda z: gaussian_epsilon(1 / z, delta))

    assert multiplier(1.0, DELTA) == pytest.approx(3.7306, rel=2e-4)
    assert multiplier(1.0, DELTA) * math.sqrt(2) == pytest.approx(5.2759, rel=2e-4)  # for a replacement
    found = [math.sqrt(4.5 * 9) * multiplier(e, d) for e, d in ((0.2, 0.1), (1, 0.1), (5, 0.1), (1, DELTA))]
    assert found == pytest.approx([14.63, 6.91, 2.71, 23.74], rel=2e-3)


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 4.0, 31.6])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_delta_and_epsilon_are_inverse(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon:
        assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-5)
    else:
        assert gaussian_delta(mu, 0.0) <= delta


def test_delta_by_integration():
    """delta = E max(0, 1 - e^(epsilon - L)), where the privacy loss L is N(mu²/2, mu²)."""
    mu, epsilon, steps = 0.9, 1.3, 200_000
    grid = [mu**2 / 2 + mu * (-8 + 16 * (i + 0.5) / steps) for i in range(steps)]
    density = [math.exp(-((x - mu**2 / 2) ** 2) / (2 * mu**2)) / (mu * math.sqrt(2 * math.pi)) for x in grid]
    total = sum(d * max(0.0, -math.expm1(epsilon - x)) for x, d in zip(grid, density, strict=True)) * 16 * mu / steps
    assert gaussian_delta(mu, epsilon) == pytest.approx(total, rel=1e-6)


def test_zero_and_infinite_noise():
    assert gaussian_epsilon(0.0, DELTA) == zcdp_epsilon(0.0, DELTA) == poisson_epsilon(1.0, 0.1, 0, DELTA) == 0.0
    assert without_replacement_epsilon(1.0, 1, 10, 0, delta=DELTA) == 0.0
    infinite = [
        gaussian_epsilon(math.inf, DELTA),
        zcdp_epsilon(math.inf, DELTA),
        poisson_epsilon(0.0, 0.1, 5, DELTA),
        without_replacement_epsilon(0.0, 1, 10, 5, delta=DELTA),
    ]
    assert infinite == [math.inf] * 4


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_a_target_chooses_the_noise(epsilon):
    pytest.importorskip("dp_accounting")
    z = multiplier_for(epsilon, lambda z: poisson_epsilon(z, 0.05, 60, DELTA))
    assert poisson_epsilon(z, 0.05, 60, DELTA) <= epsilon
    assert poisson_epsilon(z * 0.999, 0.05, 60, DELTA) > epsilon


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_epsilon(1.0, 0.0), r"delta=0.0: must lie in \(0, 1\), got 0.0"),
        (lambda: poisson_epsilon(1.0, 1.5, 1, DELTA), r"poisson_epsilon\(rate=1.5\): must lie in \(0, 1\], got 1.5"),
        (
            lambda: without_replacement_epsilon(1.0, 11, 10, 1, delta=DELTA),
            r"without_replacement_epsilon\(size=11\): must lie in 1..10, the population, got 11",
        ),
        (lambda: multiplier_for(0.0, lambda z: 1 / z), r"multiplier_for\(epsilon=0.0\): must be above 0 and finite"),
    ],
)
def test_values_that_mean_nothing_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"needs the package dp-accounting, got none.*partwise\[dp\]"):
        poisson_epsilon(1.2345, 0.1, 5, DELTA, "rdp")
    assert gaussian_epsilon(1.0, DELTA) > 4  # what needs no package works without


def test_what_is_released_again_of_one_draw_is_one_release_of_less_noise():
    """Of 100 draws made twice epsilon is 2.29; 200 draws of their own would have 0.91."""
    assert poisson_epsilon(1.0, 0.01, {2: 100}, DELTA) == pytest.approx(2.291, abs=1e-3)
    assert poisson_epsilon(1.0, 0.01, 200, DELTA) == pytest.approx(0.913, abs=1e-3)
    assert poisson_epsilon(1.0, 0.01, {1: 50, 2: 50}, DELTA) < poisson_epsilon(1.0, 0.01, {2: 100}, DELTA)
    half = poisson_epsilon(1.0 / math.sqrt(2), 0.01, 100, DELTA, "rdp")
    assert poisson_epsilon(1.0, 0.01, {2: 100}, DELTA, "rdp") == pytest.approx(half)
    assert poisson_epsilon(1.0, 1.0, {2: 3, 1: 4}, DELTA) == poisson_epsilon(1.0, 1.0, 10, DELTA)
    once = without_replacement_epsilon(1.0 / math.sqrt(2), 10, 1000, 50, delta=DELTA)
    assert without_replacement_epsilon(1.0, 10, 1000, {2: 50}, delta=DELTA) == pytest.approx(once)

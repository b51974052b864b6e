"""Randomisers: the levels that they keep, by enumeration; estimates without bias; variances as published."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
import torch

from partwise.core.codec import decode, encode
from partwise.core.errors import CompositionError
from partwise.core.randomness import SystemRandomness
from partwise.core.rng import generator
from partwise.randomizers import (
    HadamardResponse,
    LocalBudget,
    LocalHashing,
    RandomizedResponse,
    Randomizer,
    UnaryEncoding,
    best,
    combined,
    normalized,
)
from partwise.randomizers.hashing import _hashed

LN3 = math.log(3)
ALL = (RandomizedResponse, UnaryEncoding, LocalHashing, HadamardResponse)


def values(shares, n):
    return torch.cat([torch.full((round(n * s),), v) for v, s in enumerate(shares)])


def rng(seed=1):
    return generator(seed, "reports")


# ---- what a report may be, by enumeration: value -> report -> probability ----


def response(k, e):
    p, q = RandomizedResponse(k, math.log(e)).chances
    return [[p if y == v else q for y in range(k)] for v in range(k)]


def unary(k, e):
    p, q = UnaryEncoding(k, math.log(e)).chances

    def of(v, report):
        return math.prod((p if i == v else q) if report >> i & 1 else 1 - (p if i == v else q) for i in range(k))

    return [[of(v, report) for report in range(2**k)] for v in range(k)]


def hashing(k, e):
    part = LocalHashing(k, math.log(e))
    p, g = part.chances[0], part.range
    table = []
    for v in range(k):  # of any function, here some; the seed is drawn without a look at the value
        row = []
        for seed in range(20):
            hashed = int(_hashed(torch.tensor([seed]), torch.tensor([v]), g))
            row += [(p if y == hashed else (1 - p) / (g - 1)) / 20 for y in range(g)]
        table.append(row)
    return table


def hadamard(k, e):
    K = HadamardResponse(k, math.log(e)).order
    plus, minus = 2 / K * e / (e + 1), 2 / K / (e + 1)
    return [[plus if f"{(v + 1) & j:b}".count("1") % 2 == 0 else minus for j in range(K)] for v in range(k)]


@pytest.mark.parametrize("of", [response, unary, hashing, hadamard])
@pytest.mark.parametrize("k", [2, 3, 4, 7])
@pytest.mark.parametrize("e", [1.5, 3.0, 7.3])
def test_no_report_is_more_than_e_times_as_likely_under_another_value(of, k, e):
    table = of(k, e)
    assert all(sum(row) == pytest.approx(1.0) for row in table)
    worst = max(one / other for row in table for other_row in table for one, other in zip(row, other_row, strict=True))
    assert worst <= e * (1 + 1e-9)
    assert worst == pytest.approx(e)  # all of it is used


@pytest.mark.parametrize("of", [response, hadamard])
def test_reports_have_the_distribution_that_was_enumerated(of):
    k, n = 4, 60_000
    part = (RandomizedResponse if of is response else HadamardResponse)(k, LN3)
    for v, row in enumerate(of(k, 3.0)):
        counts = torch.bincount(part.report(torch.full((n,), v), rng(v)), minlength=len(row))
        for count, p in zip(counts.tolist(), row, strict=True):
            assert abs(count / n - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("value", [torch.tensor([1, 4]), torch.tensor([-1]), torch.tensor([2.0])])
def test_values_outside_are_refused(part, value):
    """Of the four values none is 4: told as it is with chance p, and never under another value, it would be known."""
    with pytest.raises(ValueError, match=re.escape(f"{part.__name__}(size=4")) as told:
        part(4, LN3).report(value, rng())
    assert "values must be whole numbers in 0..3, got others." in str(told.value)


@pytest.mark.parametrize("part", [RandomizedResponse, LocalHashing, HadamardResponse])
@pytest.mark.parametrize("value", [-1, 10**12])
def test_reports_that_nobody_honest_makes_count_for_nothing(part, value):
    honest = part(4, LN3).report(values((0.5, 0.3, 0.2, 0.0), 100), rng())
    made_up = torch.full_like(honest[:7], value)
    found = part(4, LN3).estimate(torch.cat([honest, made_up]))
    assert found.tolist() == part(4, LN3).estimate(honest).tolist()
    assert len(found) == 4


# ---- the numbers of the specification ----


def test_randomised_response_over_four_values():
    p, q = RandomizedResponse(4, LN3).chances
    assert (p, q) == (pytest.approx(1 / 2), pytest.approx(1 / 6))
    assert RandomizedResponse(4, LN3).variance(1) == pytest.approx(1.25)
    truth = (0.5, 0.3, 0.2, 0.0)
    expected = [p * f + q * (1 - f) for f in truth]
    assert expected == pytest.approx([1 / 3, 0.266667, 0.233333, 0.166667], abs=1e-6)
    reports = values(expected, 30_000)  # as many as expected, to the last
    assert RandomizedResponse(4, LN3).estimate(reports).tolist() == pytest.approx(truth)
    counted = values((0.4, 0.3, 0.2, 0.1), 100)
    assert RandomizedResponse(4, LN3).estimate(counted).tolist() == pytest.approx([0.7, 0.4, 0.1, -0.2])


def test_unary_encoding_of_rates_of_ones():
    part = UnaryEncoding(4, LN3)
    assert part.chances[1] == pytest.approx(1 / 4)
    assert part.variance(1) == pytest.approx(3.0)
    reports = torch.zeros(100, 4, dtype=torch.bool)
    for v, ones in enumerate((35, 30, 25, 27)):
        reports[torch.arange(100) * 37 % 100 < ones, v] = True
    assert part.estimate(reports).tolist() == pytest.approx([0.4, 0.2, 0.0, 0.08])


def test_local_hashing():
    part = LocalHashing(50, LN3)
    assert part.range == 4
    assert part.chances == (pytest.approx(1 / 2), 1 / 4)
    assert part.variance(1) == pytest.approx(3.0)


def test_hadamard_response_over_three_values():
    part = HadamardResponse(3, LN3)
    assert part.order == 4
    assert part.variance(1) == pytest.approx(4.0)
    table = hadamard(3, 3.0)
    assert table == [
        pytest.approx([0.375, 0.125, 0.375, 0.125]),
        pytest.approx([0.375, 0.375, 0.125, 0.125]),
        pytest.approx([0.375, 0.125, 0.125, 0.375]),
    ]
    truth = (Fraction(1, 2), Fraction(3, 10), Fraction(1, 5))
    shares = [sum(float(f) * table[v][j] for v, f in enumerate(truth)) for j in range(4)]
    assert part.estimate(values(shares, 40_000)).tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_few_values_are_best_answered_by_randomised_response():
    assert isinstance(best(10, LN3), RandomizedResponse)
    assert isinstance(best(11, LN3), UnaryEncoding)
    for k in (5, 10, 12, 40):
        found = best(k, LN3)
        assert found.variance(1) <= min(RandomizedResponse(k, LN3).variance(1), UnaryEncoding(k, LN3).variance(1)) * 1.2


# ---- all of them ----


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("epsilon", [0.7, 2.0])
@pytest.mark.parametrize("k", [2, 5, 12])
def test_estimates_have_no_bias_and_the_variance_that_is_stated(kind, epsilon, k):
    part, n, times = kind(k, epsilon), 600, 60
    assert isinstance(part, Randomizer)
    truth = torch.zeros(k, dtype=torch.float64)
    truth[0], truth[1] = 2 / 3, 1 / 3  # the others are as rare as can be
    mine = values(truth.tolist(), n)
    found = torch.stack([part.estimate(part.report(mine, rng(t))) for t in range(times)])
    deviation = math.sqrt(part.variance(n))
    # a value that many have adds to the variance, by at most p(1 - p)/(p - q)² over n; five of these
    more = 0.25 / ((math.exp(epsilon) - 1) / (2 * math.exp(epsilon) + k)) ** 2 / n
    assert float((found.mean(0) - truth).abs().max()) < 5 * math.sqrt((deviation**2 + more) / times)
    if k > 2:
        rare = found[:, 2:]
        assert float((rare**2).mean()) == pytest.approx(deviation**2, rel=6 * math.sqrt(2 / rare.numel()) + 0.05)


@pytest.mark.parametrize("kind", ALL)
def test_reports_follow_from_the_generator_unless_they_come_from_the_system(kind):
    part, mine = kind(6, 1.0), torch.arange(6).repeat(40)
    assert torch.equal(part.report(mine, rng(1)), part.report(mine, rng(1)))
    assert not torch.equal(part.report(mine, rng(1)), part.report(mine, rng(2)))
    real = kind(6, 1.0, SystemRandomness())
    assert not torch.equal(real.report(mine, rng(1)), real.report(mine, rng(1)))


@pytest.mark.parametrize("kind", ALL)
def test_nobody_reports_nothing(kind):
    part = kind(5, 1.0)
    reports = part.report(torch.empty(0, dtype=torch.int64), rng())
    assert part.estimate(reports).tolist() == [0.0] * 5


@pytest.mark.parametrize("kind", ALL)
def test_levels_out_of_range_are_refused(kind):
    name = kind.__name__
    for epsilon in (0.0, -1.0, 17.0, math.inf, math.nan):
        with pytest.raises(
            ValueError, match=re.escape(f"{name}(epsilon={epsilon}): must lie in (0, 16], got {epsilon}")
        ):
            kind(4, epsilon)
    with pytest.raises(ValueError, match=re.escape(f"{name}(size=1): must be at least 2, got 1")):
        kind(1, 1.0)


def test_a_client_that_sets_all_bits_counts_for_nothing():
    part = UnaryEncoding(200, 2.0)
    honest = part.report(torch.zeros(500, dtype=torch.int64), rng())
    loud = torch.ones(100, 200, dtype=torch.bool)
    assert part.is_plausible(honest).all()
    assert not part.is_plausible(loud).any()
    assert torch.equal(part.estimate(torch.cat([honest, loud])), part.estimate(honest))


def test_estimates_become_shares_once_at_the_end():
    found = normalized(torch.tensor([0.7, 0.4, 0.1, -0.2]))
    assert float(found.sum()) == pytest.approx(1.0)
    assert found.tolist() == pytest.approx([0.633333, 0.333333, 0.033333, 0.0], abs=1e-6)
    assert normalized(torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.25, 0.75])


def test_clients_with_levels_of_their_own_are_estimated_together():
    timid, bold = RandomizedResponse(4, 0.5), RandomizedResponse(4, 3.0)
    mine = values((0.5, 0.3, 0.2, 0.0), 2000)
    found = []
    for t in range(40):
        groups = [(timid, timid.report(mine, rng(t))), (bold, bold.report(mine, rng(100 + t)))]
        found.append(combined(groups))
    spread = torch.stack(found)[:, 3].std()
    alone = math.sqrt(bold.variance(2000))
    both = math.sqrt(1 / (1 / bold.variance(2000) + 1 / timid.variance(2000)))
    assert both < alone
    assert float(spread) == pytest.approx(both, rel=0.5)
    assert torch.stack(found).mean(0).tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.02)


# ---- what each client may answer ----


def test_a_budget_is_spent_to_its_end_in_many_reports():
    """8000 times 0.001 is 8, and in floats more: 8.0000000000005."""
    budget, state = LocalBudget(8.0), {}
    for _ in range(8000):
        state = budget.spend(state, 3, 0.001)
    assert budget.left(state, 3) == 0
    with pytest.raises(CompositionError, match=r"client 3 has epsilon 0 left, got a report of 0\.001"):
        budget.spend(state, 3, 0.001)


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf, 17.0])
def test_no_report_gives_a_budget_back(epsilon):
    with pytest.raises(ValueError, match=r"LocalBudget\(\): the epsilon of a report must lie in \[0, 16\], got"):
        LocalBudget(1.0).spend({}, 3, epsilon)


def test_fresh_reports_add_up_until_a_client_has_nothing_left():
    budget, state = LocalBudget(2.0, {7: 0.5}), {}
    for _ in range(4):
        state = budget.spend(state, 3, 0.5)
    state = budget.spend(state, 7, 0.5)
    assert (budget.left(state, 3), budget.left(state, 7), budget.left(state, 9)) == (0.0, 0.0, 2.0)
    for client in (3, 7):
        with pytest.raises(CompositionError, match=rf"client {client} has epsilon 0 left, got a report of 0\.1"):
            budget.spend(state, client, 0.1)
    assert decode(bytearray(encode(state))) == state


@pytest.mark.parametrize(("limit", "limits"), [(0.0, {}), (99.0, {}), (1.0, {3: 0.0}), (1.0, {3: math.inf})])
def test_limits_out_of_range_are_refused(limit, limits):
    with pytest.raises(ValueError, match=r"LocalBudget\(limit.*: must lie in \(0, 16\], got"):
        LocalBudget(limit, limits)

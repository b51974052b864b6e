"""The estimators of submodels.md §A, through `Mean`."""

from itertools import combinations, permutations
from statistics import fmean, pvariance

import pytest
import torch

from partwise.algorithms import FedSubAvg
from partwise.core.aggregate import sum_updates
from partwise.core.errors import CompositionError
from partwise.core.index import Coords, Grid, Rows, Whole
from partwise.core.latest import Latest
from partwise.core.mean import Mean
from partwise.core.population import Census, Counts
from partwise.core.update import Update

# §A.4: N = 4, K = 2, M = 3; coordinate -> update of each client, on what it holds
HELD = [{0: 1.0, 1: 4.0}, {0: 2.0, 2: 6.0}, {0: 3.0, 1: 8.0}, {0: 6.0}]
COHORTS = list(combinations(range(4), 2))
SIZES = [10.0, 20.0, 30.0, 40.0]
UNIFORM = [1.0] * 4


def census(held=HELD, weights=UNIFORM, size=3):
    """Counted in plain loops."""
    heat, weight = [0.0] * size, [0.0] * size
    for values, w in zip(held, weights, strict=True):
        for m in values:
            heat[m] += 1
            weight[m] += w
    as_rows = [torch.tensor(x, dtype=torch.float64).reshape(size, 1) for x in (heat, weight)]
    return Census(len(held), lambda: Counts({"E": as_rows[0]}, {"E": as_rows[1]}, sum(weights)))


def updates(held=HELD, weights=UNIFORM, size=3, kind=Rows):
    found = []
    for values, weight in zip(held, weights, strict=True):
        index = kind({"E": (size, 1)}, {"E": torch.tensor(list(values), dtype=torch.int64)})
        value = torch.tensor(list(values.values()), dtype=torch.float64)
        found.append(Update(index, {"E": value if kind is Coords else value.reshape(-1, 1)}, weight))
    return found


def reduce(mean, cohort, known, size=3):
    params = {"E": torch.zeros(size, 1, dtype=torch.float64)}
    return mean.reduce(sum_updates(cohort, params), mean.init(params, known), params)[0]


def flat(mean, cohort, known, size=3):
    got = reduce(mean, cohort, known, size)
    full = [0.0] * size
    if "E" in got.index.shapes:
        for m, x in zip(got.index.coords("E").tolist(), got.values()["E"].reshape(-1).tolist(), strict=True):
            full[m] = x
    return full


TABLE = {
    Mean("cohort"): [(1.5, 2, 3), (2, 6, 0), (3.5, 2, 0), (2.5, 4, 3), (4, 0, 3), (4.5, 4, 0)],
    Mean("expected_holders"): [(1.5, 4, 12), (2, 12, 0), (3.5, 4, 0), (2.5, 8, 12), (4, 0, 12), (4.5, 8, 0)],
    Mean("holders"): [(1.5, 4, 6), (2, 6, 0), (3.5, 4, 0), (2.5, 8, 6), (4, 0, 6), (4.5, 8, 0)],
    # `capped`: divisors max(K h / N, 1) = 2, 1, 1
    Mean("expected_holders", at_least=1.0): [(1.5, 4, 6), (2, 12, 0), (3.5, 4, 0), (2.5, 8, 6), (4, 0, 6), (4.5, 8, 0)],
}
MOMENTS = {
    Mean("cohort"): ((3, 3, 1.5), (1.1667, 3.6667, 2.25)),
    Mean("expected_holders"): ((3, 6, 6), (1.1667, 14.6667, 36)),
    Mean("holders"): ((3, 5, 3), (1.1667, 7.6667, 9)),
    Mean("expected_holders", at_least=1.0): ((3, 6, 3), (1.1667, 14.6667, 9)),
}


@pytest.mark.parametrize("kind", [Rows, Coords])
@pytest.mark.parametrize("mean", TABLE, ids=repr)
def test_enumeration(mean, kind):
    """§A.4: every row, the means and the variances; with equal weights `expected` and `ratio` are as theirs."""
    everybody = updates(kind=kind)
    rows = [flat(mean, [everybody[i] for i in cohort], census()) for cohort in COHORTS]
    for got, expected in zip(rows, TABLE[mean], strict=True):
        assert got == pytest.approx(expected)
    means, variances = MOMENTS[mean]
    assert [fmean(column) for column in zip(*rows, strict=True)] == pytest.approx(means)
    assert [pvariance(column) for column in zip(*rows, strict=True)] == pytest.approx(variances, abs=5e-5)
    same = {"cohort": Mean("expected"), "expected_holders": Mean("ratio", mean.at_least)}.get(mean.by, mean)
    assert [flat(same, [everybody[i] for i in cohort], census()) for cohort in COHORTS] == rows


def test_weights_by_size():
    """§A.5: the exact form is unbiased for the targets, the released code's ratio is not."""
    everybody, known = updates(weights=SIZES), census(weights=SIZES)
    targets = []
    for m in range(3):
        holders = [(s, v[m]) for s, v in zip(SIZES, HELD, strict=True) if m in v]
        targets.append(sum(s * x for s, x in holders) / sum(s for s, _ in holders))
    assert targets == [3.8, 7.0, 6.0]
    averages = {}
    for by in ("expected_holders", "ratio"):
        rows = [flat(Mean(by), [everybody[i] for i in cohort], known) for cohort in COHORTS]
        averages[by] = [fmean(column) for column in zip(*rows, strict=True)]
    assert averages["expected_holders"] == pytest.approx(targets)
    assert averages["ratio"] == pytest.approx([3.524603, 7.234127, 7.0], abs=1e-6)


def test_the_released_code():
    """§B.6: coef = s_tot / s(m) = (1, 2.5, 5), and the update of C = {1, 2}."""
    everybody, known = updates(weights=SIZES), census(weights=SIZES)
    pair = everybody[:2]
    by_cohort = flat(Mean("cohort"), pair, known)
    by_ratio = flat(Mean("ratio"), pair, known)
    assert by_ratio == pytest.approx([1.666667, 3.333333, 20.0], abs=1e-6)
    assert [r / c for r, c in zip(by_ratio, by_cohort, strict=True)] == pytest.approx([1.0, 2.5, 5.0])


def test_unbiased_averaging_by_size():
    """`expected` divides by (K/N) sum of all weights: its mean over the cohorts is the mean over everybody."""
    everybody, known = updates(weights=SIZES), census(weights=SIZES)
    rows = [flat(Mean("expected"), [everybody[i] for i in cohort], known) for cohort in COHORTS]
    full = [sum(s * v.get(m, 0.0) for s, v in zip(SIZES, HELD, strict=True)) / 100 for m in range(3)]
    assert [fmean(column) for column in zip(*rows, strict=True)] == pytest.approx(full)


def test_at_least_is_in_units_of_one_mean_weight():
    """Weights 10 and 20 of K = 2: a lower bound of 1 is 15; the lone holder of coordinate 1 has K s(m) / N = 20."""
    everybody, known = updates(weights=SIZES), census(weights=SIZES)
    got = flat(Mean("holders", at_least=1.0), everybody[:2], known)
    assert got == pytest.approx([50 / 30, 40 / 15, 120 / 20])
    doubled = flat(Mean("holders", at_least=2.0), everybody[:2], known)
    assert doubled == pytest.approx([50 / 30, 40 / 30, 120 / 30])


# ---- §A.8: what every submodel aggregator must pass -----------------------------------------------------------------

ESTIMATORS = [
    Mean("cohort"),
    Mean("holders"),
    Mean("expected_holders"),
    Mean("expected_holders", 1.0),
    Mean("expected"),
]


def test_1_all_hold_everything():
    held = [dict(enumerate(row)) for row in ([0.1, 5.0, -2.0], [0.7, 0.3, 9.0], [-4.0, 1.0, 1.5], [2.0, 8.0, 0.25])]
    everybody, known = updates(held), census(held)
    for cohort in COHORTS:
        results = [flat(mean, [everybody[i] for i in cohort], known) for mean in [*ESTIMATORS, Mean("ratio")]]
        assert all(result == results[0] for result in results)


@pytest.mark.parametrize("mean", [*ESTIMATORS, Mean("ratio")], ids=repr)
@pytest.mark.parametrize("kind", [Rows, Coords])
def test_2_what_nobody_holds_keeps_its_bits(mean, kind):
    """Through commit: also a value that adding 0.0 would change, and NaN."""
    start = torch.tensor([[1.0], [0.1], [-0.0]], dtype=torch.float64)
    state = {"model": {"E": start.clone()}}
    total = reduce(mean, [updates(kind=kind)[0], updates(kind=kind)[2]], census())  # nobody holds coordinate 2
    assert total.index.coords("E").tolist() == [0, 1]
    after = FedSubAvg().commit(state, {"model": total}, [])["model"]["E"]
    assert after[2].view(torch.int64).tolist() == start[2].view(torch.int64).tolist()
    assert after[:2].tolist() != start[:2].tolist()


def test_3_full_participation_makes_heat_and_count_equal():
    for weights in (UNIFORM, SIZES):
        everybody, known = updates(weights=weights), census(weights=weights)
        assert flat(Mean("expected_holders"), everybody, known) == flat(Mean("holders"), everybody, known)


@pytest.mark.parametrize("mean", [*ESTIMATORS, Mean("ratio")], ids=repr)
def test_4_permutations(mean):
    """Whole numbers, so that sums are exact in any order."""
    expected = flat(mean, updates(weights=SIZES), census(weights=SIZES))
    for order in permutations(range(4)):
        held, sizes = [HELD[i] for i in order], [SIZES[i] for i in order]
        assert flat(mean, updates(held, sizes), census(held, sizes)) == expected
    for order in permutations(range(3)):
        renamed = [dict(sorted((order[m], x) for m, x in values.items())) for values in HELD]
        got = flat(mean, updates(renamed, SIZES), census(renamed, SIZES))
        assert [got[order[m]] for m in range(3)] == expected


def test_6_held_but_unchanged_counts():
    """Evidence, not absence: client 4 now holds coordinate 1 and leaves it where it was."""
    held = [*HELD[:3], {0: 6.0, 1: 0.0}]
    cohort = [0, 3]
    for mean, before, after in (
        (Mean("holders"), 4.0, 2.0),
        (Mean("expected_holders"), 4.0, 4 / 1.5),  # K h / N grows from 1 to 1.5
        (Mean("cohort"), 2.0, 2.0),
    ):
        assert flat(mean, [updates()[i] for i in cohort], census())[1] == pytest.approx(before)
        assert flat(mean, [updates(held)[i] for i in cohort], census(held))[1] == pytest.approx(after)
    lone = flat(Mean("holders"), [updates(held)[3]], census(held))
    assert reduce(Mean("holders"), [updates(held)[3]], census(held)).index.coords("E").tolist() == [0, 1]
    assert lone[1] == 0.0


@pytest.mark.parametrize("mean", [*ESTIMATORS, Mean("ratio")], ids=repr)
def test_7_splitting_a_parameter_changes_nothing(mean):
    """One row of width 2 as two parameters of width 1, with the same holders."""
    rng = torch.Generator().manual_seed(2)
    rows = [[0, 2], [1], [0, 1, 2], [2]]
    heat = torch.tensor([[2.0], [2.0], [3.0]], dtype=torch.float64)
    weight = torch.tensor([[40.0], [50.0], [80.0]], dtype=torch.float64)
    whole, halves = [], []
    for held, size in zip(rows, SIZES, strict=True):
        value, at = torch.randn(len(held), 2, generator=rng, dtype=torch.float64), torch.tensor(held)
        whole.append(Update(Rows({"E": (3, 2)}, {"E": at}), {"E": value}, size))
        split = Rows({"A": (3, 1), "B": (3, 1)}, {"A": at, "B": at})
        halves.append(Update(split, {"A": value[:, :1].clone(), "B": value[:, 1:].clone()}, size))
    one = Census(4, lambda: Counts({"E": heat}, {"E": weight}, 100.0))
    two = Census(4, lambda: Counts({"A": heat, "B": heat}, {"A": weight, "B": weight}, 100.0))
    params = {"E": torch.zeros(3, 2, dtype=torch.float64)}
    parts = {n: torch.zeros(3, 1, dtype=torch.float64) for n in "AB"}
    for cohort in COHORTS:
        got, _ = mean.reduce(sum_updates([whole[i] for i in cohort], params), mean.init(params, one), params)
        also, _ = mean.reduce(sum_updates([halves[i] for i in cohort], parts), mean.init(parts, two), parts)
        assert torch.equal(got.values()["E"], torch.cat([also.values()["A"], also.values()["B"]], dim=1))


# ---- other ways to hold ---------------------------------------------------------------------------------------------


def test_thinner_layers():
    """HeteroFL: a wide and a narrow client; the corner that both hold is averaged, the rest is the wide one's."""
    params = {"W": torch.zeros(2, 3)}
    wide = Update(Whole({"W": (2, 3)}), {"W": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}, 1.0)
    corner = Grid({"W": (2, 3)}, {"W": (torch.tensor([0]), torch.tensor([0, 1]))})
    narrow = Update(corner, {"W": torch.tensor([[10.0, 20.0]])}, 3.0)
    got, _ = Mean("holders").reduce(sum_updates([wide, narrow], params), (), params)
    assert got.values()["W"].reshape(-1).tolist() == [7.75, 15.5, 3.0, 4.0, 5.0, 6.0]


def test_weight_of_the_result_is_the_cohort_s():
    assert reduce(Mean("holders"), updates(weights=SIZES)[:2], census()).weight == 30.0


def test_weight_zero_is_no_vote():
    cohort = [updates()[0], updates(weights=[0.0] * 4)[2]]
    assert flat(Mean("holders"), cohort, census()) == [1.0, 4.0, 0.0]
    nobody = reduce(Mean("cohort"), updates(weights=[0.0] * 4), census())
    assert all(not bool(v.any()) for v in nobody.values().values())


@pytest.mark.parametrize("held", ["rows", "whole"])
def test_a_weight_that_single_precision_does_not_have_is_no_vote(held):
    """1e-60 is 0 in float32: 0 divided by it is no number, and one such client would be the end of a run."""
    params = {"E": torch.zeros(3, 2)}
    index = Whole({"E": (3, 2)}) if held == "whole" else Rows({"E": (3, 2)}, {"E": torch.tensor([0, 2])})
    shape = index.held_shape("E")
    tiny = Update(index, {"E": torch.full(shape, 5.0)}, 1e-60)
    one = Update(Rows({"E": (3, 2)}, {"E": torch.tensor([0])}), {"E": torch.full((1, 2), 3.0)}, 2.0)
    got, _ = Mean("holders").reduce(sum_updates([tiny, one], params), (), params)
    assert got.values()["E"][0].tolist() == [3.0, 3.0]
    assert not bool(got.values()["E"][1:].any())  # NaN is any, too


def test_mean_refuses():
    with pytest.raises(ValueError, match=r"Mean\(by='heat'\): must be one of holders, cohort, .*\. Choose one\."):
        Mean("heat")
    with pytest.raises(ValueError, match=r"Mean\(at_least=-1\): must be at least 0\."):
        Mean(at_least=-1)
    with pytest.raises(CompositionError, match=r"a part needs to know how many clients hold each coordinate"):
        Mean("expected_holders").init({"E": torch.zeros(1)}, Census(4))
    Mean("holders").init({"E": torch.zeros(1)}, Census(4))  # needs no census


@pytest.mark.parametrize("part", [Mean("expected_holders"), Mean("ratio"), Latest(by_heat=True)], ids=repr)
@pytest.mark.parametrize("stream", [{"numbers": torch.zeros(3)}, {"E": torch.zeros(3)}, {"E": torch.zeros(5, 1)}])
def test_holders_are_counted_of_the_model_alone(part, stream):
    """Numbers that are summed beside it, or in its place, have no holders that a census could tell."""
    part.init({"E": torch.zeros(3, 1)}, census())
    part.init({}, census())
    with pytest.raises(CompositionError, match=r"divides by the clients that hold a coordinate of the model, got"):
        part.init(stream, census())
    Mean("expected").init(stream, census())  # divides by all clients, whatever they hold


@pytest.mark.parametrize("part", [Mean("expected"), Mean("expected_holders"), Mean("ratio"), Mean("expected", 0.5)])
def test_running_variances_are_means_of_those_who_sent_them(part):
    """Of four clients of 200, 20, 20 and 20 examples the first and one more are asked: 220, where 130 are expected.

    Variances of 1 went to 0.2 and 0.4: their mean is (200 0.2 + 20 0.4) / 220. Divided by 130 it were negative.
    """
    params = {"w": torch.ones(1), "var": torch.ones(1)}
    sizes = (200.0, 20.0, 20.0, 20.0)
    heat, weight = ({name: torch.tensor([x]) for name in params} for x in (4.0, sum(sizes)))
    state = part.init(params, Census(4, lambda: Counts(heat, weight, sum(sizes)), still={"var"}))
    shapes = {"w": (1,), "var": (1,)}
    sent = [
        Update(Whole(shapes), {"w": torch.tensor([change]), "var": torch.tensor([change])}, size)
        for size, change in ((200.0, -0.8), (20.0, -0.6))
    ]
    change = part.reduce(sum_updates(sent, params), state, params)[0].values()
    assert 1 + float(change["var"]) == pytest.approx((200 * 0.2 + 20 * 0.4) / 220)
    divisor = 220 if part.by == "ratio" else 130  # all hold all: their share of the weight is 1
    assert float(change["w"]) == pytest.approx((-160 - 12) / divisor)


def test_an_update_that_a_scheduler_scaled():
    """Weights 10 and 30, scales 1 and 1/2; row 1 is the second's alone. Their mean scale is 25 / 40."""
    params = {"E": torch.zeros(2, 1)}
    one = Update(Rows({"E": (2, 1)}, {"E": torch.tensor([0])}), {"E": torch.tensor([[4.0]])}, 10.0)
    two = Update(Rows({"E": (2, 1)}, {"E": torch.tensor([0, 1])}), {"E": torch.tensor([[8.0], [6.0]])}, 30.0)
    got = sum_updates([one, two], params, [1.0, 0.5])
    by_holders = Mean("holders").reduce(got, (), params)[0].values()["E"].flatten().tolist()
    assert by_holders == pytest.approx([(40 + 120) / 25 * 25 / 40, 90 / 15 * 25 / 40])
    by_cohort = Mean("cohort").reduce(got, (), params)[0].values()["E"].flatten().tolist()
    assert by_cohort == pytest.approx([(40 + 120) / 40, 90 / 40])


@pytest.mark.parametrize("by", ["expected_holders", "ratio"])
def test_a_row_whose_holders_were_not_counted_is_left_alone(by):
    """One client of four; K/N times the holders' weights (4, 2, 0) divides 2, 3 and 7: not by 0."""
    weight = torch.tensor([[4.0], [2.0], [0.0]], dtype=torch.float64)
    known = Census(4, lambda: Counts({"E": weight}, {"E": weight}, 4.0))
    assert flat(Mean(by), updates([{0: 2.0, 1: 3.0, 2: 7.0}], [1.0]), known) == [2.0, 6.0, 0.0]

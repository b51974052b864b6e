"""What robustness.md §0 asks of every rule: examples by hand, equivariances, breakdown, submodels."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from partwise.aggregators import (
    SLSGD,
    Bucketing,
    Bulyan,
    CentredClip,
    FlagAggregator,
    FoolsGold,
    GeometricMedian,
    Krum,
    MajorityVote,
    Mean,
    MeanAroundMedian,
    Median,
    Medoid,
    NearestNeighbours,
    Phocas,
    PrincipalGradients,
    RankVote,
    SybilWall,
    TrimmedMean,
    Watch,
    Zeno,
    ZenoPlusPlus,
)
from partwise.core.aggregate import sum_updates
from partwise.observers import MUDHoG
from partwise.testing.examples import example_probe
from toy_updates import V, aggregate, moved, rows_of, senders, submodels, value, whole

COORDINATEWISE = [Median(), TrimmedMean(trim_count=1), MeanAroundMedian(f=1), Phocas(f=1)]
VECTOR = [GeometricMedian(tolerance=1e-14, max_iterations=2000), Medoid(), Krum(f=1), Krum(f=1, num_selected=3)]
PRE = [NearestNeighbours(f=1), NearestNeighbours(f=1, inner=Krum(f=1)), Bucketing(Median(), size=2)]
ALL = [*COORDINATEWISE, *VECTOR, Bulyan(f=1), *PRE[:2]]
OTHERS = [CentredClip(2.0), FlagAggregator(), FoolsGold(), PrincipalGradients(warm_up=False), PRE[2]]


def shuffles_of(rows, times=40):
    """The rows in some of their orders."""
    draw = torch.Generator().manual_seed(6)
    return [[rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()] for _ in range(times)]


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize(
    "part",
    [
        *COORDINATEWISE,
        Medoid(),
        Krum(f=1),
        Krum(f=1, num_selected=3),
        NearestNeighbours(f=1),
        NearestNeighbours(f=2, inner=Median()),
        Bucketing(Median(), size=2),
    ],
    ids=repr,
)
def test_rows_that_are_equally_near_count_alike_in_any_order(part, size):
    """Each row is another one turned by a place: for all of them there are several that are as near."""
    base = [float(x) for x in range(size)]
    rows = [base[i:] + base[:i] for i in range(size)]
    found = {tuple(value(part, some)) for some in shuffles_of(rows)}
    assert len(found) == 1


def test_an_update_counts_once_among_its_own_neighbours():
    """Also where others say the same, and more of them than there is room for."""
    rows = [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [9.0, 9.0]]
    mixed = [0.0, 1.0], [2.25, 3.0]  # the last one with three of the others
    assert value(NearestNeighbours(f=1, inner=TrimmedMean(trim_count=0)), rows) == pytest.approx(
        [(4 * a + b) / 5 for a, b in zip(*mixed, strict=True)]
    )


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Median(), [2, 2]),
        (MeanAroundMedian(f=1), [1.875, 2.25]),
        (TrimmedMean(trim_count=1), [2.1666667, 1.6666667]),
        (Phocas(f=1), [1.875, 2.25]),
        (Krum(f=1), [2, 1]),
        (Krum(f=1, num_selected=2), [2.25, 1.5]),
        (Krum(f=1, num_selected=4), [1.875, 2.25]),
        (GeometricMedian(tolerance=1e-13, max_iterations=5000), [2.3339685543, 1.8815481927]),
        (MeanAroundMedian(f=0), [21.5, -18.2]),
        (Phocas(f=0), [21.5, -18.2]),
    ],
    ids=repr,
)
def test_shared_example(part, expected):
    assert value(part, V) == pytest.approx(expected, abs=2e-7)


def test_medoid_of_the_shared_example():
    sums = [sum(math.dist(a, b) for b in V) for a in V]
    assert value(Medoid(), V) == V[min(range(5), key=sums.__getitem__)]


CORRUPTED = [[1000.0 if i == j else 1.0 for j in range(5)] for i in range(5)]


@pytest.mark.parametrize("part", COORDINATEWISE, ids=repr)
def test_one_bad_value_per_column_is_survived_coordinate_by_coordinate(part):
    assert value(part, CORRUPTED) == [1.0] * 5


def test_one_bad_value_per_column_breaks_the_others():
    assert value(GeometricMedian(), CORRUPTED) == pytest.approx([200.8] * 5)
    assert sorted(value(Krum(f=1), CORRUPTED)) == [1.0, 1.0, 1.0, 1.0, 1000.0]
    assert sorted(value(Medoid(), CORRUPTED)) == [1.0, 1.0, 1.0, 1.0, 1000.0]


@pytest.mark.parametrize("part", [*ALL, *OTHERS], ids=repr)
def test_order_of_the_clients_does_not_matter(part):
    rows = rows_of(9, 6).tolist()
    base = value(part, rows)
    for seed in range(3):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
        assert value(part, [rows[i] for i in order]) == pytest.approx(base, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("part", ALL, ids=repr)
def test_shift_and_scale(part):
    rows = rows_of(9, 6)
    shift = torch.tensor([3.0, -7.0, 0.5, 100.0, 0.0, -1.0], dtype=torch.float64)
    base = torch.tensor(value(part, rows.tolist()), dtype=torch.float64)
    changed = torch.tensor(value(part, (2.5 * rows + shift).tolist()), dtype=torch.float64)
    assert torch.allclose(changed, 2.5 * base + shift, atol=1e-5)  # the geometric median stops within that


@pytest.mark.parametrize("power", [-96, -72, 96])
@pytest.mark.parametrize("part", [*ALL, FlagAggregator(), FoolsGold()], ids=repr)
def test_scale_in_single_precision(part, power):
    """2^-72 is 2e-22, whose square is no number of float32; 2^96 is 8e28, whose square is none either."""
    rows = rows_of(9, 6)
    base = torch.tensor(value(part, rows.tolist(), torch.float32))
    changed = torch.tensor(value(part, (rows.float() * 2.0**power).tolist(), torch.float32))
    assert torch.allclose(changed * 2.0**-power, base, atol=1e-5)


@pytest.mark.parametrize("part", [*VECTOR, NearestNeighbours(f=1, inner=Krum(f=1))], ids=repr)
def test_rotation_turns_the_result(part):
    rows, turn = rows_of(9, 2), torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]]).double()
    base = torch.tensor(value(part, rows.tolist())).double()
    assert torch.allclose(torch.tensor(value(part, (rows @ turn).tolist())).double(), base @ turn, atol=1e-5)


@pytest.mark.parametrize("part", COORDINATEWISE, ids=repr)
def test_rotation_does_not_turn_what_goes_by_coordinates(part):
    rows, turn = (
        rows_of(8, 2, seed=5),
        torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]]).double(),
    )
    base = torch.tensor(value(part, rows.tolist())).double()
    assert float((torch.tensor(value(part, (rows @ turn).tolist())).double() - base @ turn).norm()) > 0.01


@pytest.mark.parametrize("part", [*ALL, *OTHERS], ids=repr)
def test_equal_rows_give_that_row(part):
    if isinstance(part, CentredClip):
        assert value(part, [[0.1, 0.7]] * 9) == pytest.approx([0.1, 0.7])  # within its radius
    else:
        assert value(part, [[0.1, 0.7]] * 9) == pytest.approx([0.1, 0.7], rel=1e-12)


@pytest.mark.parametrize("part", [*ALL, *OTHERS], ids=repr)
def test_what_is_not_finite_is_dropped_before_the_rule(part):
    rows = rows_of(9, 3).tolist()
    for bad in (math.nan, math.inf, -math.inf):
        assert all(map(math.isfinite, value(part, [*rows, [bad, 1.0, 0.0]])))


# These stand as long as less than half is faulty, whatever is declared.
HALF = [Median(), GeometricMedian(), Medoid(), CentredClip(2.0), FlagAggregator()]
DECLARED = [MeanAroundMedian(f=1), Phocas(f=1), TrimmedMean(trim_count=1), Krum(f=1), Bulyan(f=1), PRE[0]]


@pytest.mark.parametrize("part", [*DECLARED, *HALF], ids=repr)
def test_more_that_is_not_finite_than_declared_fails_the_round(part):
    rows = rows_of(3 if part in HALF else 9, 2).tolist()
    bad = [[math.nan, 1.0]] * (4 if part in HALF else 2)
    with pytest.raises(ValueError, match=rf"{type(part).__name__}\(.*\): allows \d faulty among \d+ updates, got \d"):
        value(part, [*rows, *bad])


@pytest.mark.parametrize("part", [Median(min_holders=1), MeanAroundMedian(f=2), Phocas(f=2), TrimmedMean(trim_count=2)])
def test_stays_between_the_honest(part):
    """MeaMed and Phocas average near a centre that lies there, so they may leave the range, but not by more."""
    rng = torch.Generator().manual_seed(4)
    for trial in range(300):
        honest = torch.randn(5, 7, generator=rng, dtype=torch.float64)
        bad = 10 ** float(trial % 10) * torch.randn(2, 7, generator=rng, dtype=torch.float64)
        got = torch.tensor(value(part, torch.cat([honest, bad]).tolist())).double()
        low, high = honest.min(0).values, honest.max(0).values
        slack = (high - low) if isinstance(part, MeanAroundMedian | Phocas) else 1e-12
        assert bool(((got >= low - slack) & (got <= high + slack)).all())


@pytest.mark.parametrize(("m", "q"), [(m, q) for m in range(1, 10) for q in range((m - 1) // 2 + 1)])
def test_median_and_trimmed_mean_stay_between_the_honest_to_their_last_faulty(m, q):
    """3,000 trials, a column each: the faulty are far on one side, far on both, or near."""
    rng = torch.Generator().manual_seed(10 * m + q)
    honest = torch.randn(m - q, 3000, generator=rng, dtype=torch.float64)
    bad = 10.0 ** torch.randint(-2, 9, (3000,), generator=rng) * torch.randn(q, 3000, generator=rng).double()
    bad[:, ::2] = bad[:, ::2].abs()
    rows = torch.cat([bad[: q // 2], honest, bad[q // 2 :]]).tolist()
    low, high = honest.min(0).values, honest.max(0).values
    median = torch.tensor(value(Median(min_holders=1), rows), dtype=torch.float64)
    assert bool(((median >= low) & (median <= high)).all())
    trimmed = torch.tensor(value(TrimmedMean(trim_count=q), rows), dtype=torch.float64)
    assert bool(((trimmed >= low - 1e-12) & (trimmed <= high + 1e-12)).all())  # one rounding of a mean of several


JUDGING = [*ALL, *OTHERS, PRE[2], MajorityVote(), RankVote(), SLSGD(2, alpha=0.6), SybilWall(), PrincipalGradients()]
JUDGING += [Zeno(f=2, probe=example_probe()), ZenoPlusPlus(probe=example_probe())]
JUDGING += [Watch(MUDHoG(start=1, min_overlap=1), Median(), exclude=True)]


@pytest.mark.parametrize("part", JUDGING, ids=repr)
@pytest.mark.parametrize("is_whole", [True, False])
def test_weight_that_a_client_chooses_changes_nothing(part, is_whole):
    """Nothing in three rounds, bit for bit, nor the order in which ties are broken; the mean follows such a client."""
    start = 0.0 if isinstance(part, RankVote) else 0.5  # rankings are orders of 0..39
    params = {"w": torch.full((40,), start, dtype=torch.float64)}
    rng = torch.Generator().manual_seed(9)
    states, mean_state = [part.init(params, None) for _ in range(2)], Mean("holders").init(params, None)
    for number in range(3):
        rows = [torch.randperm(40, generator=rng).double() - 41 * start for _ in range(9)]
        updates = whole([row.tolist() for row in rows]) if is_whole else submodels(9, 40, 30, seed=number)
        boastful = [*updates[:-1], replace(updates[-1], weight=1e9)]
        found = []
        for i, sent in enumerate((updates, boastful)):
            got, states[i] = part.reduce(sent, states[i], params, senders(9))
            found.append(moved(got) if got.value else {})
        assert found[0] == found[1]
        assert found[0] or (isinstance(part, RankVote) and not is_whole)  # part of a ranking is no vote
        means = [Mean("holders").reduce(sum_updates(s, params), mean_state, params)[0] for s in (updates, boastful)]
        assert moved(means[0]) != pytest.approx(moved(means[1]), rel=0.1)


def test_breakdown_of_the_median_is_tight():
    assert value(Median(), [[0.0], [1.0], [1e9], [1e9]]) == [pytest.approx(5e8, rel=1e-6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e10, 1e16, 1e20, 1e30])
def test_geometric_median_does_not_follow_two_of_five(size, dtype):
    rows = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [size, size], [size, size]]
    assert value(GeometricMedian(), rows, dtype) == pytest.approx([0.788675] * 2, abs=2e-6)


@pytest.mark.parametrize("size", [1e3, 1e9, 1e14, 1e20])
def test_geometric_median_is_optimal_however_far_the_faulty_are(size):
    """Four of eleven, each far in a direction of its own; then in one, as an omniscient attacker sends them."""
    part = GeometricMedian(tolerance=1e-12, max_iterations=5000, smoothing=1e-12)
    rows = rows_of(11, 3, seed=4)
    rows[:4] *= size * torch.tensor([1.0, 3.0, 0.2, 0.7]).double().unsqueeze(1)
    assert pull(value(part, rows.tolist()), rows.tolist()) < 1e-6
    rows[:4] = -size * rows[4:].sum(0)
    assert pull(value(part, rows.tolist()), rows.tolist()) < 1e-6


@pytest.mark.parametrize("size", [1e3, 1e9, 1e16, 1e20, 1e30])
def test_medoid_is_told_from_others_however_far_the_faulty_are(size):
    """‖r u - v‖ is r - ⟨u, v⟩ for large r: what the far ones add to the sums of two others differs by that alone."""
    for seed in range(5):
        honest, way = rows_of(7, 6, seed=seed), rows_of(3, 6, seed=seed + 20)
        way /= way.norm(dim=1, keepdim=True)
        sums = [sum(math.dist(v, w) for w in honest) - float((way @ v).sum()) for v in honest]
        best = honest[min(range(7), key=sums.__getitem__)].tolist()
        assert value(Medoid(), [*honest.tolist(), *(size * way).tolist()]) == best


def test_geometric_median_of_equal_updates_is_what_they_are_whatever_else_is_sent():
    rows = [[0.1, 0.7]] * 4 + [[1e18, -1e3], [-1e200, 2.0], [5.0, 1e30]]
    assert value(GeometricMedian(), rows) == pytest.approx([0.1, 0.7], rel=1e-12)
    apart = [[0.1, 0.7], [0.2, 0.7], [0.1, 0.9], [0.3, 0.6], [1e200, 1e200]]
    got = value(GeometricMedian(), apart)
    assert all(low <= x <= high for x, (low, high) in zip(got, ((0.1, 0.3), (0.6, 0.9)), strict=True))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_geometric_median_goes_with_two_of_four(size):
    """It is at the faulty themselves, not halfway, where an iteration that ends early may stay: the sum is flat there.

    z = v_k of two copies is the optimum iff the unit vectors to the others add up to no more than 2. Those to (0, 0)
    and (1, 0) are not parallel, so that theirs is below 2.
    """
    rows = [[0.0, 0.0], [1.0, 0.0], [size, size], [size, size]]
    assert value(GeometricMedian(), rows) == pytest.approx([size, size], rel=1e-12)
    assert objective(rows[2], rows) < objective([size / 2, size / 2], rows)


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e20])
def test_geometric_median_between_two_equal_halves_is_no_matter_of_their_order(copies, size):
    """The sum of distances is the same all the way from one to the other."""
    rows = [[1.0, 0.0]] * copies + [[1.0 + 4 * size, 2 * size]] * copies
    for shuffled in (rows, rows[::-1]):
        got = value(GeometricMedian(min_holders=1), shuffled)
        assert got == pytest.approx([1.0 + 2 * size, size], rel=1e-12)


def objective(z, rows):
    return sum(math.dist(z, row) for row in rows)


def pull(z, rows):
    """The length of the sum of unit vectors from z to every row that is elsewhere."""
    apart = [(row, math.dist(row, z)) for row in rows if row != z]
    return math.hypot(*(sum((row[j] - z[j]) / d for row, d in apart) for j in range(len(z))))


def test_geometric_median_is_optimal():
    part = GeometricMedian(tolerance=1e-14, max_iterations=20000, smoothing=1e-12)
    z = value(part, V)
    assert objective(z, V) == pytest.approx(145.763403782, abs=1e-8)
    assert pull(z, V) < 1e-8
    for seed in range(20):
        rows = rows_of(7, 3, seed).tolist()
        assert pull(value(part, rows), rows) < 1e-8


def test_geometric_median_is_at_a_data_point_where_that_is_optimal():
    """z = v_k iff the unit vectors to all others add up to no more than 1: of four in a plane, one between the rest."""
    part, num_at = GeometricMedian(tolerance=1e-14, max_iterations=20000, smoothing=1e-12), 0
    for seed in range(60):
        rows = rows_of(4, 2, seed).tolist()
        z = value(part, rows)
        best = [row for row in rows if pull(row, rows) <= 1]
        num_at += len(best)
        assert math.dist(z, best[0]) < 1e-6 if best else pull(z, rows) < 1e-8
    assert 10 < num_at < 50


def test_geometric_median_at_a_data_point():
    """The slow case: the objective is compared, not the argument."""
    rows = [[0.0, 0.0], [10.0, 0.0], [10.0, 1.0], [10.0, -1.0]]
    assert objective(value(GeometricMedian(), rows), rows) == pytest.approx(objective([10.0, 0.0], rows), rel=1e-3)


# ---- the others -----------------------------------------------------------------------------------------------------


def test_bulyan_selects_anew_after_each():
    """§3.6: a selection of five at once would take 3, 2, 1, 5, 0 instead of 3, 2, 1, 4, 0."""
    rows = [[1.0, 1.0], [2.0, 1.0], [1.0, 2.5], [2.0, 2.0], [3.0, 3.0], [2.0, 3.5], [1000.0, -1000.0]]
    for order in itertools.islice(itertools.permutations(rows), 0, 5040, 500):
        assert value(Bulyan(f=1), list(order)) == pytest.approx([5 / 3, 5.5 / 3])


def test_bulyan_against_plain_loops():
    for seed in range(8):
        rows = rows_of(11, 4, seed).tolist()
        left, chosen, f = list(range(11)), [], 2
        while len(chosen) < 11 - 2 * f:
            near = max(1, len(left) - f - 2)
            scores = {i: sum(sorted(math.dist(rows[i], rows[k]) ** 2 for k in left if k != i)[:near]) for i in left}
            apart = {i: sum(math.dist(rows[i], rows[k]) ** 2 for k in left) for i in left}
            best = min(left, key=lambda i, s=scores, a=apart: (s[i], a[i]))
            chosen.append(best)
            left.remove(best)
        expected = []
        for j in range(4):
            column = sorted(rows[i][j] for i in chosen)
            middle = column[len(column) // 2]
            kept = sorted(column, key=lambda x, c=middle: abs(x - c))[: len(chosen) - 2 * f]
            expected.append(sum(kept) / len(kept))
        assert value(Bulyan(f=2), rows) == pytest.approx(expected)


@pytest.mark.parametrize("f", [1, 3, 4])
def test_means_around_a_centre_against_plain_loops(f):
    for seed in range(10):
        rows = rows_of(10, 5, seed).tolist()
        for part, cut in ((MeanAroundMedian(f), None), (Phocas(f), f)):
            expected = []
            for column in (sorted(c) for c in zip(*rows, strict=True)):
                centre = (column[4] + column[5]) / 2 if cut is None else sum(column[f : 10 - f]) / (10 - 2 * f)
                expected.append(sum(sorted(column, key=lambda x, c=centre: abs(x - c))[: 10 - f]) / (10 - f))
            assert value(part, rows) == pytest.approx(expected)


def test_equally_near_values_prefer_the_smaller():
    assert value(MeanAroundMedian(f=1), [[1.0], [2.0], [3.0]]) == [1.5]


def test_raising_one_value_never_lowers_the_trimmed_mean():
    base = [-3.0, -1.0, 0.5, 2.0, 9.0]
    for i, amount in itertools.product(range(5), (0.1, 4.0, 1e6)):
        raised = [[x + amount if k == i else x] for k, x in enumerate(base)]
        assert value(TrimmedMean(trim_count=1), raised) >= value(TrimmedMean(trim_count=1), [[x] for x in base])


def test_neighbours_against_plain_loops():
    rows = rows_of(7, 3).tolist()
    mixed = []
    for a in rows:
        near = sorted(rows, key=lambda b, a=a: math.dist(a, b))[:5]
        mixed.append([sum(r[j] for r in near) / 5 for j in range(3)])
    expected = [sorted(m[j] for m in mixed)[3] for j in range(3)]
    assert value(NearestNeighbours(f=2, inner=Median()), rows) == pytest.approx(expected)


def test_buckets_are_all_there_and_differ_by_round():
    """Each is a mean of two; their mean is that of all, and the next round makes others."""
    rows = rows_of(8, 3)
    mean = rows.mean(0)
    part = Bucketing(TrimmedMean(trim_count=0), size=2)
    assert value(part, rows.tolist()) == pytest.approx(mean.tolist())
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    part = Bucketing(Median(), size=2)
    first, state = part.reduce(whole(rows.tolist()), part.init(params, None), params)
    second, _ = part.reduce(whole(rows.tolist()), state, params)
    assert not torch.equal(first.values()["w"], second.values()["w"])
    other, _ = Bucketing(Median(), size=2, seed=1).reduce(whole(rows.tolist()), (0, ()), params)
    assert not torch.equal(first.values()["w"], other.values()["w"])
    assert value(Bucketing(Median(), size=1), rows.tolist()) == value(Median(), rows.tolist())


@dataclass(frozen=True)
class Counting(Median):
    """The median, which tells how many updates it got."""

    def reduce(self, got, state, params, replies=()):
        return super().reduce(got, (), params, replies)[0], len(got)

    def told(self, state):
        return {"got": state}


@pytest.mark.parametrize(("part", "told"), [(NearestNeighbours(f=1), 5), (Bucketing(size=2), 3)])
def test_what_the_rule_inside_tells_is_passed_on(part, told):
    part, params = replace(part, inner=Counting()), {"w": torch.zeros(3, dtype=torch.float64)}
    _, state = part.reduce(whole(rows_of(5, 3).tolist()), part.init(params, None), params)
    assert part.told(state) == {"got": told}
    plain = replace(part, inner=Median())
    assert plain.told(plain.init(params, None)) == {}


def test_centred_clipping_by_hand():
    """c = 0, τ = 2: (3, 4) is cut to (1.2, 1.6); then c is the new centre, and stays one for the next round."""
    part, params = CentredClip(radius=2.0), {"w": torch.zeros(2, dtype=torch.float64)}
    rows = [[3.0, 4.0], [0.0, 1.0], [0.0, -1.0]]
    first = part.init(params, None)
    got, state = part.reduce(whole(rows), first, params)
    assert got.values()["w"].tolist() == pytest.approx([0.4, 1.6 / 3])
    assert first["w"].tolist() == [0.0, 0.0]  # the state that was given is another one
    again, _ = part.reduce(whole([[0.4, 1.6 / 3]] * 3), state, params)
    assert again.values()["w"].tolist() == pytest.approx([0.4, 1.6 / 3])
    far = [[1e9, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert value(CentredClip(radius=2.0), far) == pytest.approx([2 / 3, 0.0])  # τ / m, and no farther
    assert value(CentredClip(radius=2.0, iterations=3), far)[0] < 3 * 2 / 3


def test_refusals_name_the_part_and_the_remedy():
    with pytest.raises(ValueError, match=r"Bulyan\(f=2\): needs at least 4f\+3 = 11 updates, got 5\. Lower f or ask"):
        value(Bulyan(f=2), V)
    with pytest.raises(ValueError, match=r"Phocas\(f=3\): needs at least 2f\+1 = 7 updates, got 5\. Lower f or ask"):
        value(Phocas(f=3), V)
    with pytest.raises(ValueError, match=r"NearestNeighbours\(f=3\): needs at least 2f\+1 = 7 updates, got 5\."):
        value(NearestNeighbours(f=3), V)
    for make, says in (
        (lambda: Bulyan(f=-1), r"Bulyan\(f=-1\): must be at least 0, got -1\."),
        (lambda: Phocas(f=-1), r"Phocas\(f=-1\): must be at least 0, got -1\."),
        (lambda: CentredClip(0.0), r"CentredClip\(radius=0\.0\): must be finite and above 0, got 0\.0\."),
        (lambda: Bucketing(size=0), r"Bucketing\(size=0\): must be at least 1, got 0\."),
        (lambda: GeometricMedian(max_iterations=0), r"GeometricMedian\(max_iterations=0\): must be at least 1, got 0"),
        (lambda: GeometricMedian(tolerance=0.0), r"GeometricMedian\(tolerance=0\.0\): must lie in \(0, 1\), got 0\.0"),
        (lambda: Medoid(0), r"Medoid\(min_overlap=0\): must be at least 1, got 0\."),
    ):
        with pytest.raises(ValueError, match=says):
            make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("part", [*ALL, *OTHERS], ids=repr)
def test_half_precision_stays_what_it_is(part, dtype):
    """Worked on in float32, and as near to float64 as the type has digits; selection may differ in near ties."""
    rows = rows_of(9, 30).to(dtype)
    got = aggregate(part, whole(rows.tolist(), dtype)).values()["w"]
    assert got.dtype == dtype
    exact = torch.tensor(value(part, rows.double().tolist()))
    if not isinstance(part, Bucketing):  # its order is by what the bytes say
        assert torch.allclose(got.float(), exact, rtol=0.02, atol=0.02)

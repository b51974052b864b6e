import itertools
import math
from dataclasses import replace

import pytest
import torch

from partwise.aggregators import Bulyan, GeometricMedian, Krum, NearestNeighbours, columns
from partwise.aggregators.geometry import distances
from partwise.aggregators.krum import krum_scores
from partwise.core.index import Coords, Rows, Whole
from partwise.core.update import Update

V = [[1.0, 2.0], [2.0, 1.0], [2.5, 2.0], [2.0, 4.0], [100.0, -100.0]]
SUBMODELS = [{0: 1, 1: 2, 2: 3}, {1: 4, 2: 5, 3: 6}, {2: 7, 3: 8}, {2: 100}]


def whole(rows, dtype=torch.float32):
    return [Update(Whole({"w": (len(row),)}), {"w": torch.tensor(row, dtype=dtype)}, 3.0) for row in rows]


def partial(held, size=5):
    updates = []
    for values in held:
        index = Coords({"w": (size,)}, {"w": torch.tensor(list(values), dtype=torch.int64)})
        updates.append(Update(index, {"w": torch.tensor([float(x) for x in values.values()], dtype=torch.float64)}))
    return updates


def reduce(part, updates):
    params = {"w": torch.zeros(updates[0].index.shapes["w"], dtype=updates[0].value["w"].dtype)}
    return part.reduce(updates, part.init(params, None), params)[0]


def value(part, rows, dtype=torch.float32):
    return reduce(part, whole(rows, dtype)).values()["w"].tolist()


def scores(rows, f):
    """The paper's: the m - f - 2 smallest squared distances to others, in plain loops."""
    result = []
    for i, a in enumerate(rows):
        apart = sorted(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for k, b in enumerate(rows) if k != i)
        result.append(sum(apart[: len(rows) - f - 2]))
    return result


def test_shared_example():
    assert scores(V, 1) == [4.25, 3.25, 3.5, 9.25, 39715.25]
    assert value(Krum(f=1), V) == [2.0, 1.0]
    assert value(Krum(f=1, num_selected=2), V) == [2.25, 1.5]
    assert value(Krum(f=1, num_selected=4), V) == [1.875, 2.25]


def test_scores_of_seven_rows():
    """robustness.md §3.6."""
    rows = [[1.0, 1.0], [2.0, 1.0], [1.0, 2.5], [2.0, 2.0], [3.0, 3.0], [2.0, 3.5], [1000.0, -1000.0]]
    assert scores(rows, 1) == [12.5, 10.25, 8.75, 6.25, 12.5, 11.75, 7998033.0]
    assert value(Krum(f=1), rows) == [2.0, 2.0]
    assert value(Krum(f=1, num_selected=3), rows) == pytest.approx([5 / 3, 5.5 / 3])


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_against_plain_loops(f):
    rng = torch.Generator().manual_seed(f)
    for _ in range(10):
        rows = torch.randn(9, 5, generator=rng, dtype=torch.float64).tolist()
        ranked = sorted(range(9), key=scores(rows, f).__getitem__)
        assert value(Krum(f), rows, torch.float64) == rows[ranked[0]]
        mean = [sum(rows[i][j] for i in ranked[:3]) / 3 for j in range(5)]
        assert value(Krum(f, num_selected=3), rows, torch.float64) == pytest.approx(mean)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_copies_of_a_faulty_update_are_scored_by_the_same_rule(times):
    """They are at no distance from one another, which helps them; self is left out once, and no copy with it."""
    rows = [*V[:4], [0.5, 3.0], [3.0, 1.5], [1.5, 0.5], *[[9.0, 9.0]] * times]
    by_rule = scores(rows, f=2)
    squared = distances(whole(rows, torch.float64), {"w": torch.zeros(2, dtype=torch.float64)}, 1)
    assert krum_scores(squared, len(rows) - 4).tolist() == pytest.approx(by_rule)
    one, apart = [9.0, 9.0], sorted(math.dist([9.0, 9.0], row) ** 2 for row in rows[:7])
    assert by_rule[-1] == pytest.approx(sum(([0.0] * (times - 1) + apart)[: len(rows) - 4]))
    assert value(Krum(f=2), rows, torch.float64) == rows[min(range(len(rows)), key=by_rule.__getitem__)] != one


def test_enough_copies_of_a_faulty_update_win():
    """With m - f - 2 copies beside oneself the score is 0: there are more than f, the rule's premise does not hold."""
    rows = [*V[:4], *[[9.0, 9.0]] * 5]
    assert scores(rows, 2)[-5:] == [sum(sorted(math.dist([9.0, 9.0], row) ** 2 for row in V[:4])[:1])] * 5
    assert scores(rows, 3)[-5:] == [0.0] * 5
    assert value(Krum(f=3), rows, torch.float64) == [9.0, 9.0]


def test_result_is_one_of_the_updates_to_the_last_bit():
    rows = torch.randn(7, 40, generator=torch.Generator().manual_seed(8))
    result = reduce(Krum(f=2), [Update(Whole({"w": (40,)}), {"w": row}) for row in rows])
    assert isinstance(result.index, Whole)
    assert any(torch.equal(result.values()["w"], row) for row in rows)


@pytest.mark.parametrize("num_selected", [1, 3])
def test_order_does_not_matter_even_in_a_tie(num_selected):
    """Column-wise corruption: all scores tie at 3992004; the choice follows the values."""
    rows = [[1000.0 if i == j else 1.0 for j in range(5)] for i in range(5)]
    assert scores(rows, 1) == [3992004.0] * 5
    results = {tuple(value(Krum(1, num_selected), order)) for order in itertools.permutations(rows)}
    assert len(results) == 1
    if num_selected == 1:
        assert results == {(1.0, 1.0, 1.0, 1.0, 1000.0)}  # the smallest in the order of its values


def test_shift_scale_and_rotation():
    rows = torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    base = torch.tensor(value(Krum(2), rows.tolist(), torch.float64), dtype=torch.float64)
    shift = torch.tensor([300.0, -7.0], dtype=torch.float64)
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=torch.float64)
    for changed, expected in ((3 * rows + shift, 3 * base + shift), (rows @ turn, base @ turn)):
        got = torch.tensor(value(Krum(2), changed.tolist(), torch.float64), dtype=torch.float64)
        assert torch.allclose(got, expected, atol=1e-12)


def test_distances_keep_their_digits():
    """float32 entries near 100 whose squared distances are about 0.002: a difference of squares gives 0, 2, -2."""
    rng = torch.Generator().manual_seed(1)
    rows = 100 + 0.01 * torch.randn(6, 10, generator=rng)
    updates = [Update(Whole({"w": (10,)}), {"w": row}) for row in rows]
    got = distances(updates, {"w": torch.zeros(10)})
    for i, k in itertools.product(range(6), range(6)):
        exact = sum((x - y) ** 2 for x, y in zip(rows[i].tolist(), rows[k].tolist(), strict=True))
        assert float(got[i, k]) == pytest.approx(exact, rel=1e-12)
    far = [*updates, Update(updates[0].index, {"w": torch.full((10,), 1e20)})]
    assert torch.equal(distances(far, {"w": torch.zeros(10)})[:6, :6], got)


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("num", [1, 2, 15, 16, 31, 32, 50])
def test_distances_of_any_number_against_plain_loops(num, is_whole, monkeypatch):
    """In many blocks and stretches; bits are the same for one thread and for more."""
    monkeypatch.setattr(columns, "_ELEMENTS", 7 * num)
    size, rng = 200 if num < 20 else 70, torch.Generator().manual_seed(num)  # plain loops over all pairs take long
    rows = torch.randn(num, size, generator=rng, dtype=torch.float64) + torch.arange(num).unsqueeze(1)
    held = torch.ones(num, size, dtype=torch.bool) if is_whole else torch.rand(num, size, generator=rng) < 0.7
    held[:, 0] = True
    index = [Coords({"w": (size,)}, {"w": at.nonzero().reshape(-1)}) for at in held]
    index = [Whole({"w": (size,)})] * num if is_whole else index
    updates = [Update(i, {"w": row[at]}) for i, row, at in zip(index, rows, held, strict=True)]
    got = distances(updates, {"w": torch.zeros(size, dtype=torch.float64)})
    union = int(held.any(0).sum())
    for i, k in itertools.product(range(num), range(num)):
        both = [j for j in range(size) if held[i, j] and held[k, j]]
        expected = union / len(both) * sum((float(rows[i, j]) - float(rows[k, j])) ** 2 for j in both)
        assert float(got[i, k]) == pytest.approx(expected, rel=1e-11)
        assert float(got[i, k]) == float(got[k, i])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(distances(updates, {"w": torch.zeros(size, dtype=torch.float64)}), got)
    finally:
        torch.set_num_threads(before)


def test_values_whose_squares_run_over():
    """Of float32 they are multiplied in float64, also where clients hold different coordinates."""
    whole_ones = whole([[1e20, 0.0], [0.0, 2e20], [0.0, 0.0]])
    got = distances(whole_ones, {"w": torch.zeros(2)})
    assert [float(got[i, k]) for i, k in ((0, 1), (0, 2), (1, 2))] == pytest.approx([5e40, 1e40, 4e40])
    shape = {"w": (3,)}
    two = Coords(shape, {"w": torch.tensor([0, 1])})
    parts = [Update(two, {"w": torch.tensor(row)}) for row in ([1e20, 0.0], [0.0, 2e20])]
    parts.append(Update(Whole(shape), {"w": torch.tensor([0.0, 0.0, 3e20])}))
    got = distances(parts, {"w": torch.zeros(3)}, min_overlap=1)
    assert [float(got[i, k]) for i, k in ((0, 1), (0, 2), (1, 2))] == pytest.approx([7.5e40, 1.5e40, 6e40])


def test_distances_over_the_overlap():
    """robustness.md §0.2: the mean squared difference, times the union's size, which is 4."""
    got = distances(partial(SUBMODELS), {"w": torch.zeros(5)}, min_overlap=1) / 4
    mean_squares = {(0, 1): 4.0, (0, 2): 16.0, (0, 3): 9409.0, (1, 2): 4.0, (1, 3): 9025.0, (2, 3): 8649.0}
    for (i, k), expected in mean_squares.items():
        assert float(got[i, k]) == float(got[k, i]) == expected
    apart = distances(partial(SUBMODELS), {"w": torch.zeros(5)}, min_overlap=2) / 4
    finite = {(i, k) for i, k in mean_squares if float(apart[i, k]) < math.inf}
    assert finite == {(0, 1), (1, 2)}
    assert [float(apart[i, k]) for i, k in sorted(finite)] == [4.0, 4.0]


def test_overlap_grows_with_the_updates():
    """5 % of the smaller, where that is more than min_overlap."""
    size = 1000
    first, far = range(500), range(480, 1000)  # they share 20 of at least 500: fewer than 25
    updates = partial([dict.fromkeys(first, 1.0), dict.fromkeys(far, 2.0), dict.fromkeys(range(475, 1000), 2.0)], size)
    got = distances(updates, {"w": torch.zeros(size)})
    assert float(got[0, 1]) == math.inf
    assert float(got[0, 2]) == pytest.approx(size)  # they share 25


def test_selected_submodels_are_averaged_where_they_hold():
    """Six clients over rows; the liar is far from everybody on what they share."""
    shapes = {"E": (6, 4)}
    held = [([0, 1, 2], 1.0), ([0, 1, 3], 1.2), ([0, 1, 2, 4], 0.9), ([0, 1, 5], 1.1), ([0, 1, 2, 3], 50.0)]
    updates = []
    for rows, size in held:
        updates.append(Update(Rows(shapes, {"E": torch.tensor(rows)}), {"E": torch.full((len(rows), 4), size)}))
    params = {"E": torch.zeros(6, 4)}
    part = Krum(f=1, num_selected=2, min_overlap=8)
    got, _ = part.reduce(updates, (), params)
    # on the two shared rows: scores by 2 neighbours are .01+.04 (1.0: .9, 1.1), .01+.04 (1.1: 1.2, 1.0), .05, .05 alike
    chosen = dict(zip(got.index.rows["E"].tolist(), got.values()["E"][:, 0].tolist(), strict=True))
    assert set(chosen) == {0, 1, 2, 5}
    assert chosen == pytest.approx({0: 1.05, 1: 1.05, 2: 1.0, 5: 1.1})


def test_nothing_moves_where_nobody_can_be_compared():
    got = reduce(Krum(f=0), partial([{0: 1.0}, {1: 2.0}, {2: 3.0}]))
    assert dict(got.index.shapes) == {}


def test_update_that_is_not_finite_counts_as_faulty():
    bad = [math.nan, 0.0]
    assert value(Krum(f=1), [*V[:4], bad]) == [2.0, 1.0] == value(Krum(f=1), V)
    with pytest.raises(ValueError, match=r"\(f=1, .*\): allows 1 faulty among 6 updates, got 2 that are not finite\."):
        value(Krum(f=1), [*V[:4], bad, [math.inf, 1.0]])


def test_weight_that_is_not_finite_counts_as_faulty():
    updates = whole([*V[:4], [2.0, 1.0]])
    got = reduce(Krum(f=1), [*updates[:4], replace(updates[4], weight=math.nan)])
    assert got.values()["w"].tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="allows 0 faulty among 5 updates, got 1 that"):
        reduce(Krum(f=0), [*updates[:4], replace(updates[4], weight=math.inf)])


def test_squares_that_run_over_are_no_fault():
    """1e25 squared is no float32; nor is 1e200 squared a float64: an update that is finite is kept, and far away.

    The three smallest squared distances of the others sum to 9.25, 12.25, 7.75 and 18.25.
    """
    for far, dtype in ((1e25, torch.float32), (1e200, torch.float64)):
        assert value(Krum(f=0), [*V[:4], [far, -far]], dtype) == [2.5, 2.0]


@pytest.mark.parametrize("part", [Krum(f=2), Bulyan(f=2), GeometricMedian(), NearestNeighbours(f=2)], ids=repr)
def test_two_whose_squares_run_over_are_far_from_everybody(part):
    """Also from one another, and where their products with others run over too: nobody else's distance is lost."""
    rng = torch.Generator().manual_seed(1)
    honest, far = (3 + torch.randn(num, 12, generator=rng, dtype=torch.float64) for num in (9, 2))
    usual, huge = (value(part, [*honest.tolist(), *(s * far).tolist()], torch.float64) for s in (1e30, 2e307))
    low, high = honest.min(0).values.tolist(), honest.max(0).values.tolist()
    assert all(a <= x <= b for a, x, b in zip(low, huge, high, strict=True))
    if not isinstance(part, GeometricMedian):  # which follows the ways in which they lie, where these are known
        assert huge == pytest.approx(usual)


@pytest.mark.parametrize("threads", [1, 3])
def test_weighted_mean_of_whole_updates_in_stretches(threads, monkeypatch):
    """Two parameters, one of three stretches and a rest, against plain loops."""
    monkeypatch.setattr(columns, "_LONG", 4)
    rng, weights = torch.Generator().manual_seed(3), [0.5, 2.0, 0.25]
    shapes = {"a": (7, 2), "b": ()}
    params = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    rows = [{n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()} for _ in weights]
    updates = [Update(Whole(shapes), row) for row in rows]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mean = columns.combine(updates, params, torch.tensor(weights, dtype=torch.float64)).values()
        total = columns.combine(updates, params, torch.tensor(weights, dtype=torch.float64), is_share=True).values()
    finally:
        torch.set_num_threads(before)
    for name in shapes:
        each = [row[name].reshape(-1).tolist() for row in rows]
        sums = [sum(w * x for w, x in zip(weights, column, strict=True)) for column in zip(*each, strict=True)]
        assert total[name].reshape(-1).tolist() == pytest.approx(sums, rel=1e-14)
        assert mean[name].reshape(-1).tolist() == pytest.approx([x / 2.75 for x in sums], rel=1e-14)


def test_krum_refuses():
    says = r"Krum\(f=3\): needs at least 2f\+3 = 9 updates, got 7\. Lower f or ask a larger cohort\."
    with pytest.raises(ValueError, match=says):
        value(Krum(f=3), [*V, *V[:2]])
    with pytest.raises(ValueError, match=r"\(f=1, num_selected=5\): may select at most m-f = 4 of 5 updates, got 5\."):
        value(Krum(f=1, num_selected=5), V)
    with pytest.raises(ValueError, match=r"Krum\(f=-1\): must be at least 0, got -1\."):
        Krum(f=-1)
    with pytest.raises(ValueError, match=r"Krum\(num_selected=0\): must be at least 1, got 0\."):
        Krum(f=1, num_selected=0)

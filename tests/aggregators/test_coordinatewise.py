import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from partwise.aggregators import SLSGD, MeanAroundMedian, Median, Phocas, TrimmedMean, columns
from partwise.core.index import Coords, Grid, Joint, Rows, Whole
from partwise.core.update import Update
from partwise.testing.examples import example_params, example_updates

V = [[1.0, 2.0], [2.0, 1.0], [2.5, 2.0], [2.0, 4.0], [100.0, -100.0]]
# robustness.md §0.2: A, B, C, D over 5 coordinates
SUBMODELS = [{0: 1, 1: 2, 2: 3}, {1: 4, 2: 5, 3: 6}, {2: 7, 3: 8}, {2: 100}]


def whole(rows, dtype=torch.float32):
    return [Update(Whole({"w": (len(row),)}), {"w": torch.tensor(row, dtype=dtype)}, 3.0) for row in rows]


def partial(held, size=5, dtype=torch.float64):
    updates = []
    for values in held:
        index = Coords({"w": (size,)}, {"w": torch.tensor(list(values), dtype=torch.int64)})
        updates.append(Update(index, {"w": torch.tensor([float(x) for x in values.values()], dtype=dtype)}))
    return updates


def reduce(part, updates, size=None, dtype=None):
    size = size or updates[0].index.shapes["w"][0]
    like = torch.zeros(size, dtype=dtype or (updates[0].value["w"].dtype if updates else torch.float64))
    return part.reduce(updates, part.init({"w": like}, None), {"w": like})[0]


def moved(update):
    if "w" not in update.index.shapes:
        return {}
    return dict(zip(update.index.coords("w").tolist(), update.values()["w"].tolist(), strict=True))


def test_shared_example():
    assert reduce(Median(), whole(V)).values()["w"].tolist() == [2.0, 2.0]
    trimmed = reduce(TrimmedMean(trim_count=1), whole(V)).values()["w"].tolist()
    assert trimmed == pytest.approx([2.1666667, 1.6666667], abs=1e-7)
    assert reduce(TrimmedMean(trim_fraction=0.2), whole(V)).values()["w"].tolist() == trimmed
    assert reduce(TrimmedMean(), whole(V)).values()["w"].tolist() == trimmed
    mean = reduce(TrimmedMean(trim_count=0), whole(V)).values()["w"].tolist()
    assert mean == pytest.approx([21.5, -18.2])


@pytest.mark.parametrize("part", [Median(), TrimmedMean(trim_count=1)])
def test_one_bad_value_per_column(part):
    rows = [[1000.0 if i == j else 1.0 for j in range(5)] for i in range(5)]
    assert reduce(part, whole(rows)).values()["w"].tolist() == [1.0] * 5


def test_absence_is_not_a_zero_vote():
    """The table of §0.2: without a least number of holders, and with three."""
    medians = moved(reduce(Median(min_holders=1), partial(SUBMODELS)))
    assert medians == {0: 1.0, 1: 3.0, 2: 6.0, 3: 7.0}
    assert moved(reduce(Median(), partial(SUBMODELS))) == {2: 6.0}
    assert moved(reduce(TrimmedMean(trim_count=1), partial(SUBMODELS))) == {2: 6.0}


def test_someone_elsewhere_changes_nothing():
    for part in (Median(), TrimmedMean(trim_fraction=0.2)):
        more = [*SUBMODELS, {0: 50, 4: -3}]
        assert moved(reduce(part, partial(more)))[2] == 6.0
        renumbered = [{4 - j: x for j, x in sorted(held.items(), reverse=True)} for held in SUBMODELS]
        assert moved(reduce(part, partial(renumbered))) == {2: 6.0}


def oracle(kind, held, size, total):
    """Plain loops: median; or the mean without b_n = max(1, ⌊b n / m⌋) on each side."""
    result = {}
    for j in range(size):
        column = sorted(values[j] for values in held if j in values)
        n = len(column)
        if n < 3:
            continue
        if kind == "median":
            result[j] = column[n // 2] if n % 2 else (column[n // 2 - 1] + column[n // 2]) / 2
        else:
            cut = max(1, math.floor(kind * n / total + 1e-9))
            result[j] = sum(column[cut : n - cut]) / (n - 2 * cut)
    return result


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 5), st.integers(-9, 9)), min_size=5, max_size=12), st.data())
def test_against_plain_loops(held, data):
    held = [dict(sorted(values.items())) for values in held]
    updates = partial(held, size=6)
    assert moved(reduce(Median(), updates)) == pytest.approx(oracle("median", held, 6, len(held)))
    cut = data.draw(st.integers(1, (len(held) - 1) // 2))
    got = moved(reduce(TrimmedMean(trim_count=cut), updates))
    assert got == pytest.approx(oracle(cut, held, 6, len(held)), abs=1e-12)
    shuffled = data.draw(st.permutations(updates))
    assert moved(reduce(TrimmedMean(trim_count=cut), shuffled)) == got


def test_dense_updates_give_the_dense_rule_to_the_last_bit():
    rows = torch.randn(9, 300, generator=torch.Generator().manual_seed(1))
    updates = [Update(Whole({"w": (300,)}), {"w": row}) for row in rows]
    result = reduce(Median(), updates)
    assert isinstance(result.index, Whole)
    assert torch.equal(result.values()["w"], rows.median(0).values)  # an odd number: one of the values
    expected = []
    for column in rows.t().double():
        kept = sorted(column.tolist())[2:-2]
        total = 0.0
        for x in kept:
            total += x
        expected.append(total / len(kept))
    expected = torch.tensor(expected, dtype=torch.float64).float()
    assert torch.equal(reduce(TrimmedMean(trim_count=2), updates).values()["w"], expected)
    # The same values, held through other kinds of index.
    everything = Coords({"w": (300,)}, {"w": torch.arange(300)})
    other = [Update(everything, {"w": row}) if i % 2 else updates[i] for i, row in enumerate(rows)]
    assert torch.equal(reduce(TrimmedMean(trim_count=2), other).values()["w"], expected)


@pytest.mark.parametrize("part", [Median(min_holders=1), TrimmedMean(trim_count=1), TrimmedMean(trim_fraction=0.3)])
def test_result_stays_between_the_honest(part):
    """q = 2 of 9 send anything; trim_count=1 is built for one, so it gets one."""
    rng = torch.Generator().manual_seed(4)
    for _ in range(30):
        honest = torch.randn(7, 11, generator=rng, dtype=torch.float64)
        q = 1 if part.__dict__.get("trim_count") == 1 else 2
        bad = 1e9 * torch.randn(q, 11, generator=rng, dtype=torch.float64)
        rows = torch.cat([honest, bad]).tolist()
        value = reduce(part, whole(rows, torch.float64)).values()["w"]
        assert bool((value >= honest.min(0).values - 1e-12).all())
        assert bool((value <= honest.max(0).values + 1e-12).all())


@pytest.mark.parametrize("part", [Median(), TrimmedMean(trim_count=2)])
def test_shift_and_scale(part):
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shift = torch.tensor([3.0, -7.0, 0.5, 100.0, 0.0, -1.0], dtype=torch.float64)
    base = reduce(part, whole(rows.tolist(), torch.float64)).values()["w"]
    moved_rows = reduce(part, whole((2.5 * rows + shift).tolist(), torch.float64)).values()["w"]
    assert torch.allclose(moved_rows, 2.5 * base + shift, atol=1e-12)
    equal = reduce(part, whole([[0.1, 0.7]] * 8)).values()["w"]
    assert torch.equal(equal, torch.tensor([0.1, 0.7]))


def test_raising_one_value_never_lowers_the_trimmed_mean():
    base = [-3.0, -1.0, 0.5, 2.0, 9.0]
    for i, amount in itertools.product(range(5), (0.1, 4.0, 1e6)):
        raised = [x + amount if k == i else x for k, x in enumerate(base)]
        part = TrimmedMean(trim_count=1)
        before, after = (float(reduce(part, whole([[x] for x in xs])).values()["w"]) for xs in (base, raised))
        assert after >= before


def test_weights_are_not_believed():
    updates = whole(V)
    boastful = [*updates[:-1], Update(updates[-1].index, updates[-1].value, 1e9)]
    assert torch.equal(reduce(Median(), boastful).values()["w"], reduce(Median(), updates).values()["w"])


def test_mixed_indices_and_the_shape_of_the_result():
    """Rows of a table stay rows; a grid makes single coordinates; blocks of columns do not show."""
    params = {"E": torch.zeros(5, 2), "W": torch.zeros(2, 3)}
    rows = Rows({"E": (5, 2)}, {"E": torch.tensor([1, 3])})
    grid = Grid({"W": (2, 3)}, {"W": (None, torch.tensor([0, 2]))})
    one = Update(Joint((rows, grid)), {"E": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "W": torch.full((2, 2), 6.0)})
    both = Update(Whole({"E": (5, 2), "W": (2, 3)}), {"E": torch.full((5, 2), 5.0), "W": torch.full((2, 3), 8.0)})
    got, _ = Median().reduce([one, both, both], (), params)
    assert {n: got.index.coords(n).tolist() for n in "EW"} == {"E": [2, 3, 6, 7], "W": [0, 2, 3, 5]}
    assert isinstance(got.index, Joint)
    assert got.values()["E"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert got.values()["W"].tolist() == [8.0] * 4


def test_memory_is_a_block_of_columns(monkeypatch):
    params, updates = example_params(), example_updates(example_params(), 7)
    expected, _ = TrimmedMean(trim_count=2).reduce(updates, (), params)
    monkeypatch.setattr(columns, "_ELEMENTS", 35)
    blocks = columns.of_stretches(
        updates, params, "E", torch.float32, lambda some: [(b.start, *b.table.shape) for b in some]
    )
    assert [start for some in blocks for start in some] == [(i, 7, min(5, 21 - i)) for i in range(0, 21, 5)]
    got, _ = TrimmedMean(trim_count=2).reduce(updates, (), params)
    assert all(torch.equal(got.values()[n], v) for n, v in expected.values().items())


@pytest.mark.parametrize("threads", [1, 3])
def test_large_updates_that_are_not_finite_are_found(threads, monkeypatch):
    monkeypatch.setattr(columns, "_ELEMENTS", 3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        updates = whole([[1.0, 2.0], [math.nan, 2.0], [3.0, 4.0], [5.0, -math.inf]])
        assert [u.value["w"].tolist() for u in columns.finite(updates, 2, "part")] == [[1.0, 2.0], [3.0, 4.0]]
        with pytest.raises(ValueError, match="allows 1 faulty among 4 updates, got 2 that are not finite"):
            columns.finite(updates, 1, "part")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_threads_are_as_they_were_whatever_a_rule_does(monkeypatch):
    params, updates = example_params(), example_updates(example_params(), 7)
    monkeypatch.setattr(columns, "_ELEMENTS", 35)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError):
            columns.reduce_columns(updates, params, lambda block: block.table[0] * (1 // (block.start - 10)), least=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_update_that_is_not_finite_counts_as_faulty():
    bad = whole([[math.nan, 1.0], [1.0, math.inf]])
    honest = whole(V[:4])
    assert reduce(TrimmedMean(trim_count=1), [*honest, bad[0]]).values()["w"].tolist() == [2.0, 2.0]
    says = r"TrimmedMean\(.*trim_count=1.*\): allows 1 faulty among 6 updates, got 2 that are not finite\."
    with pytest.raises(ValueError, match=says):
        reduce(TrimmedMean(trim_count=1), [*honest, *bad])
    assert reduce(Median(), [*honest, *bad]).values()["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("m", "f"), [(5, 2), (7, 3), (9, 4), (10, 4), (20, 4)])
def test_what_is_not_finite_does_not_let_the_other_faulty_in(m, f):
    """Of f that were declared, some send NaN and the others 1e9: the rest lie in 0..m - f - 1, and so does the mean."""
    rules = [TrimmedMean(trim_count=f), TrimmedMean(trim_fraction=f / m), MeanAroundMedian(f=f), Phocas(f=f), SLSGD(f)]
    for part, dropped in itertools.product(rules, range(f + 1)):
        bad = [[math.nan]] * dropped + [[1e9]] * (f - dropped)
        got = part.reduce(whole([*bad, *([float(i)] for i in range(m - f))]), 0, {"w": torch.zeros(1)})[0]
        assert 0 <= float(got.values()["w"]) <= m - f - 1, (part, dropped)


def test_few_updates():
    assert moved(reduce(Median(), [], size=2)) == {}
    assert moved(reduce(Median(), whole(V[:2]))) == {}
    assert moved(reduce(Median(min_holders=2), whole(V[:2]))) == {0: 1.5, 1: 1.5}
    assert moved(reduce(TrimmedMean(), whole(V[:1]))) == {}
    says = r"TrimmedMean\(trim_count=3\): needs at least 2b\+1 = 7 updates, got 5\. Lower trim_count or ask a larger"
    with pytest.raises(ValueError, match=says):
        reduce(TrimmedMean(trim_count=3), whole(V))


@pytest.mark.parametrize(("fraction", "num", "cut"), [(0.29, 100, 29), (0.2, 4, 1), (0.2, 15, 3), (0.49999999, 10, 4)])
def test_fraction_loses_none_to_truncation(fraction, num, cut):
    """int(0.29 * 100) is 28, and a cut of nothing at 0.2 of 4 would be a mean."""
    values = [float(i * i) for i in range(num)]
    kept = values[cut : num - cut]
    got = float(reduce(TrimmedMean(trim_fraction=fraction), whole([[v] for v in values], torch.float64)).values()["w"])
    assert got == pytest.approx(sum(kept) / len(kept))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"\(trim_fraction=0\.1, trim_count=2\): needs one of the two, got both\."):
        TrimmedMean(0.1, 2)
    with pytest.raises(ValueError, match=r"TrimmedMean\(trim_fraction=0\.5\): must lie in \[0, 0\.5\), got 0\.5\."):
        TrimmedMean(0.5)
    with pytest.raises(ValueError, match=r"TrimmedMean\(trim_count=-1\): must be at least 0, got -1\."):
        TrimmedMean(trim_count=-1)
    with pytest.raises(ValueError, match=r"Median\(min_holders=0\): must be at least 1, got 0\."):
        Median(0)
    with pytest.raises(ValueError, match=r"TrimmedMean\(min_holders=0\): must be at least 1, got 0\."):
        TrimmedMean(min_holders=0)

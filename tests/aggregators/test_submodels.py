"""What robustness.md §0.2 asks of every rule over submodels: absence is no vote, and coverage is no lever."""

import itertools
import math

import pytest
import torch

from partwise.aggregators import (
    Bulyan,
    CentredClip,
    FlagAggregator,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeanAroundMedian,
    Median,
    Medoid,
    NearestNeighbours,
    Phocas,
    PrincipalGradients,
    TrimmedMean,
)
from partwise.aggregators.geometry import inner_products
from partwise.core.index import Coords, Whole
from partwise.core.update import Update
from partwise.programs.coverage import coverage
from toy_updates import SUBMODELS, aggregate, moved, partial, rows_of, submodels, value


def test_absence_is_not_a_zero_vote():
    """The table of §0.2: only index 2 has three holders."""
    for part in (Median(), TrimmedMean(trim_count=1), MeanAroundMedian(f=1), Phocas(f=1)):
        assert set(moved(aggregate(part, partial(SUBMODELS)))) == {2}
    assert moved(aggregate(Median(), partial(SUBMODELS))) == {2: 6.0}
    assert moved(aggregate(TrimmedMean(trim_count=1), partial(SUBMODELS))) == {2: 6.0}
    # 3, 5, 7, 100 around 6: the nearest three are 5, 7 and 3
    assert moved(aggregate(MeanAroundMedian(f=1), partial(SUBMODELS))) == {2: 5.0}
    # around 6, the mean of 5 and 7, the same three
    assert moved(aggregate(Phocas(f=1), partial(SUBMODELS))) == {2: 5.0}


def test_the_centre_leaves_out_what_too_few_hold():
    """§0.2: what is held is reported, so that the aggregate does not name it; a median of the same leaves as much."""
    updates = partial(SUBMODELS)
    got = aggregate(CentredClip(1.0), updates)
    assert set(moved(got)) == {2}
    params = {"w": torch.zeros(5, dtype=torch.float64)}
    assert coverage(updates, got, params) == coverage(updates, aggregate(Median(), updates), params)
    assert coverage(updates, got, params)["coordinates_left"] == 3


@pytest.mark.parametrize("least", [1, 23])
def test_cosines_over_the_overlap_against_plain_loops(least):
    """Of submodels of 30 coordinates of 40; 0 where a pair shares fewer than it must."""
    updates = submodels(9, 40, 30, seed=8)
    got = inner_products(updates, {"w": torch.zeros(40, dtype=torch.float64)}, min_overlap=least)[1]
    held = [dict(zip(u.index.coords("w").tolist(), u.values()["w"].tolist(), strict=True)) for u in updates]
    num_apart = 0
    for (i, a), (k, b) in itertools.product(enumerate(held), enumerate(held)):
        shared = a.keys() & b.keys()
        if len(shared) < least:
            num_apart += 1
            assert float(got[i, k]) == 0.0
            continue
        lengths = math.sqrt(sum(a[j] ** 2 for j in shared)) * math.sqrt(sum(b[j] ** 2 for j in shared))
        assert float(got[i, k]) == pytest.approx(sum(a[j] * b[j] for j in shared) / lengths, abs=1e-12)
    assert (0 < num_apart < 72) == (least > 20)  # any two share 20 at least


@pytest.mark.parametrize("crowd", [1, 2, 4])
def test_who_shares_little_with_anybody_does_not_lead_the_geometric_median(crowd):
    """Ten hold 0..99; liars hold four of these, too few to be compared, and coordinates of their own."""
    rows = rows_of(10, 100, seed=6)
    honest = [dict(enumerate(row.tolist())) for row in rows]
    liars = [dict.fromkeys([0, 1, 2, 3, *range(100 + 100 * i, 200 + 100 * i)], 1e6) for i in range(crowd)]
    got = moved(aggregate(GeometricMedian(), partial([*honest, *liars], size=600)))
    assert set(got) == set(range(100))
    assert all(abs(got[j]) < 10 for j in range(100))


@pytest.mark.parametrize("far", [1e6, 1e12])
def test_who_holds_everything_does_not_lead_the_geometric_median(far):
    """Two groups that share nothing, and liars who can be compared with both: 12 to 6 at every coordinate."""
    rows = rows_of(24, 20, seed=7)
    honest = [{j + 20 * (i % 2): v for j, v in enumerate(row.tolist())} for i, row in enumerate(rows)]
    liars = [dict.fromkeys(range(40), far) for _ in range(6)]
    got = moved(aggregate(GeometricMedian(), partial([*honest, *liars], size=40)))
    assert set(got) == set(range(40))
    assert all(abs(got[j]) < 10 for j in range(40))


def test_the_medoid_is_one_of_those_who_can_be_compared_with_most():
    """Six hold one half or the other, two hold all: sums over fewer distances do not make the halves medoids."""
    rows = rows_of(6, 20, seed=8)
    halves = [{j + 20 * (i % 2): v for j, v in enumerate(row.tolist())} for i, row in enumerate(rows)]
    whole = [dict(enumerate(row.tolist())) for row in rows_of(2, 40, seed=9)]
    assert set(moved(aggregate(Medoid(), partial([*halves, *whole], size=40)))) == set(range(40))


PARTIAL = [
    Median(),
    TrimmedMean(trim_count=1),
    MeanAroundMedian(f=1),
    Phocas(f=1),
    GeometricMedian(tolerance=1e-14, max_iterations=2000),
    Krum(f=1, num_selected=4),
    Bulyan(f=1),
    NearestNeighbours(f=1),
    CentredClip(2.0, min_holders=1),
    FoolsGold(),
    FlagAggregator(min_holders=1),
    PrincipalGradients(warm_up=False),
]


@pytest.mark.parametrize("unit", [1.0, 1e147])
@pytest.mark.parametrize("size", [1e3, 1e20])
def test_the_medoid_of_submodels_is_told_from_others_however_far_the_faulty_are(size, unit):
    """Two go in opposite directions, as far from all: the others decide, with sums of 11.75, 8.75, 7.75, 9.25, 14.5."""
    honest = [dict.fromkeys(range(20), x * unit) for x in (1.0, 2.0, 3.0, 4.5, 6.25)]
    far = [dict.fromkeys(range(10), sign * size * unit) for sign in (1.0, -1.0)]
    assert set(moved(aggregate(Medoid(), partial([*honest, *far], size=20))).values()) == {3.0 * unit}


def test_geometric_median_of_two_submodels_is_no_matter_of_their_order():
    held = [dict.fromkeys(range(4), 1.0), dict.fromkeys(range(1, 5), 2.0)]
    for sent in (held, held[::-1]):
        got = moved(aggregate(GeometricMedian(min_holders=1), partial(sent)))
        assert got == pytest.approx({0: 1.0, 1: 1.5, 2: 1.5, 3: 1.5, 4: 2.0})


@pytest.mark.parametrize("part", [*PARTIAL, Medoid()], ids=repr)
def test_full_submodels_give_the_dense_rule(part):
    """Bit for bit, where the rule's sums go the same way; else to a few roundings.

    Weighted means of whole updates are added up update by update, each read once; those of coordinates are products of
    a row with a block of columns, divided by the weights' sum at the end. So the four that make one differ in the last
    bits: the geometric median, FoolsGold, Flag and FedLD.
    """
    rows = rows_of(9, 40)
    dense = [Update(Coords({"w": (40,)}, {"w": torch.arange(40)}), {"w": row}) for row in rows]
    found = moved(aggregate(part, dense))
    got = torch.tensor([found[j] for j in range(40)], dtype=torch.float64)
    expected = torch.tensor(value(part, rows.tolist()), dtype=torch.float64)
    if isinstance(part, GeometricMedian | FoolsGold | FlagAggregator | PrincipalGradients):
        assert torch.allclose(got, expected, rtol=1e-14, atol=1e-15)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("part", [part for part in PARTIAL if not isinstance(part, FoolsGold)], ids=repr)
def test_a_parameter_of_no_elements_beside_another(part):
    rows = rows_of(9, 40)
    shapes = {"none": (0, 3), "w": (40,)}
    updates = [Update(Whole(shapes), {"none": torch.zeros(0, 3, dtype=row.dtype), "w": row}) for row in rows]
    params = {name: torch.zeros(shape, dtype=rows.dtype) for name, shape in shapes.items()}
    got = part.reduce(updates, part.init(params, None), params)[0].values()
    expected = torch.tensor(value(part, rows.tolist()), dtype=torch.float64)
    assert torch.allclose(got["w"], expected, rtol=1e-14, atol=1e-15)
    assert got["none"].shape == (0, 3)


@pytest.mark.parametrize("part", PARTIAL, ids=repr)
def test_renumbering_permutes_the_result(part):
    updates = submodels(9, 40, 30, seed=2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(7))
    place = order.argsort()
    renumbered = []
    for update in updates:
        at, by = place[update.index.coords("w")].sort()
        renumbered.append(Update(Coords({"w": (40,)}, {"w": at}), {"w": update.values()["w"][by]}))
    base, other = moved(aggregate(part, updates)), moved(aggregate(part, renumbered))
    assert {int(place[j]): x for j, x in base.items()} == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("part", [Median(), GeometricMedian(), CentredClip(5.0)], ids=repr)
def test_someone_elsewhere_changes_nothing(part):
    """A client that holds only what nobody else does."""
    updates = submodels(9, 40, 30, seed=2)
    alone = Update(Coords({"w": (50,)}, {"w": torch.tensor([45, 47])}), {"w": torch.tensor([3.0, 5.0]).double()})
    wide = [Update(Coords({"w": (50,)}, {"w": u.index.coords("w")}), u.value) for u in updates]
    base, more = moved(aggregate(part, wide)), moved(aggregate(part, [*wide, alone]))
    for j in base:
        assert more[j] == pytest.approx(base[j], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("part", "alone", "with_others"),
    [
        (Median(), 20.5, 20.5),
        (TrimmedMean(trim_fraction=0.3), 21.5, 21.5),  # (9 + 16 + 25 + 36) / 4
        (TrimmedMean(trim_count=3), 21.5, 25.5),  # one of ten, for three of 30: (1 + 4 + ... + 64) / 8
        (MeanAroundMedian(f=3), 13.0, 204 / 9),  # 0 to 36, and 0 to 64
        (Phocas(f=3), 13.0, 204 / 9),
    ],
    ids=repr,
)
def test_a_declared_number_is_of_all_clients_and_a_fraction_is_of_holders(part, alone, with_others):
    """Ten hold position 0, with the squares from 0 to 81; then twenty come who hold another one."""
    holders, others = [{0: float(x * x)} for x in range(10)], [{1: 1.0}] * 20
    assert moved(aggregate(part, partial(holders)))[0] == pytest.approx(alone)
    assert moved(aggregate(part, partial([*holders, *others])))[0] == pytest.approx(with_others)


def test_what_few_hold_is_held():
    """The coverage attack: hostile clients pile on what hardly anybody holds, and cannot move it."""
    honest = [{0: 1.0, 1: 1.1 + 0.1 * i, 2: 0.9} for i in range(6)]
    crowd = [{3: -1e6}, {3: -1e6}]
    for part in (Median(), TrimmedMean(trim_count=2), MeanAroundMedian(f=2), Phocas(f=2), GeometricMedian()):
        assert 3 not in moved(aggregate(part, partial([*honest, *crowd])))


@pytest.mark.parametrize(("f", "whole"), [(2, 3), (2, 4), (3, 6)])
def test_bulyan_moves_nothing_where_too_few_can_be_compared(f, whole):
    """Those who hold everything share enough with all; the others with nobody else."""
    size = 40
    got = [Update(Whole({"w": (size,)}), {"w": torch.full((size,), 1.0 + at)}) for at in range(whole)]
    for at in range(4 * f + 3 - whole):
        own = torch.arange(4) + 4 * (at % 10)
        got.append(Update(Coords({"w": (size,)}, {"w": own}), {"w": torch.full((4,), 2.0 + at)}))
    found = Bulyan(f, min_overlap=4).reduce(got, (), {"w": torch.zeros(size)})[0]
    assert found.values() == {}


def test_neighbours_are_mixed_where_a_parameter_is_named_and_nobody_sends_any_of_it():
    """As where a draw of coordinates has none of a short one: the rest is mixed as without it."""
    rows, shapes = rows_of(5, 4), {"w": (4,), "b": (1,)}
    empty, none = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    at, params = torch.arange(4), {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    updates = [Update(Coords(shapes, {"w": at, "b": empty}), {"w": row, "b": none}) for row in rows]
    part = NearestNeighbours(f=1, min_overlap=1)
    got, _ = part.reduce(updates, part.init(params, None), params)
    assert set(got.index.shapes) == {"w"}
    assert got.values()["w"].tolist() == value(part, rows.tolist())

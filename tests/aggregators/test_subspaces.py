"""Flag Aggregator, FoolsGold and FedLD's principal gradients: robustness.md §11, §12 and §14."""

import itertools
import math

import numpy as np
import pytest
import torch

from partwise.aggregators import FlagAggregator, FoolsGold, PrincipalGradients, SybilWall
from partwise.aggregators.foolsgold import foolsgold_weights, raw_weights
from partwise.core.codec import decode, encode
from partwise.core.index import Coords, Whole
from partwise.core.update import Update
from toy_updates import senders, value, whole

G = [[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [4.0, 1.0, 0.0], [0.0, 10.0, 0.0]]


def gram(rows):
    t = torch.tensor(rows, dtype=torch.float64)
    return t @ t.t()


def direction(rows, **settings):
    """The first direction of the subspace, with the sign of the mean."""
    basis = torch.tensor(rows, dtype=torch.float64).t() @ FlagAggregator(**settings).subspace(gram(rows))
    y = basis[:, 0]
    return (y * y.sum().sign()).tolist()


def objective(rows, y):
    ratios = [sum(a * b for a, b in zip(row, y, strict=True)) ** 2 / sum(a * a for a in row) for row in rows]
    return sum(math.sqrt(max(0.0, 1 - r)) for r in ratios), ratios


def test_direction_of_the_table():
    """The plain SVD; and after convergence the direction of the third column: the outlier is ignored."""
    normal = np.array([np.array(row) / math.hypot(*row) for row in G])
    plain = np.linalg.svd(normal.T)[0][:, 0]
    assert np.abs(plain[:2]) == pytest.approx([0.8702, 0.4927], abs=1e-4)
    assert objective(G, plain)[0] == pytest.approx(1.8968, abs=1e-4)
    y = direction(G, rank=1, iterations=200)
    assert y == pytest.approx([0.970142, 0.242536, 0.0], abs=1e-4)
    found, ratios = objective(G, y)
    assert found == pytest.approx(1.727210, abs=1e-4)
    assert ratios == pytest.approx([0.9412, 0.7353, 1.0, 0.0588], abs=1e-3)
    grid = min(objective(G, [math.cos(a), math.sin(a), 0.0])[0] for a in np.linspace(0, math.pi, 20001))
    assert found == pytest.approx(grid, abs=1e-3)


def test_iterations_never_make_it_worse():
    rng = torch.Generator().manual_seed(6)
    for _ in range(10):
        rows = torch.randn(6, 4, generator=rng).double().tolist()
        found = [objective(rows, direction(rows, rank=1, iterations=n))[0] for n in (1, 3, 10, 30)]
        assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("num", "rank"), [(15, 8), (4, 3), (5, 3)])
def test_rank_is_just_above_half_where_none_is_given(num, rank):
    """⌈(p + 1) / 2⌉, 8 of 15 as in the released script."""
    rows = torch.randn(num, 20, generator=torch.Generator().manual_seed(7)).double()
    basis = rows.t() @ FlagAggregator().subspace(gram(rows.tolist()))
    assert int(torch.linalg.matrix_rank(basis)) == rank
    assert value(FlagAggregator(), rows.tolist()) == pytest.approx(value(FlagAggregator(rank=rank), rows.tolist()))


def test_full_rank_gives_the_mean():
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).double()
    got = value(FlagAggregator(rank=5, clip=False), rows.tolist())
    assert got == pytest.approx(rows.mean(0).tolist())
    clipped = value(FlagAggregator(rank=5), rows.tolist())
    lengths = rows.norm(dim=1)
    cut = (lengths.median() / lengths).clamp(max=1.0)
    assert clipped == pytest.approx((rows * cut.unsqueeze(1)).mean(0).tolist())


@pytest.mark.parametrize("pairs", [0.0, 2.0])
def test_projection_against_plain_matrices(pairs):
    """The whole of one iteration with d × p matrices, as the paper writes it."""
    rows = np.random.default_rng(3).normal(size=(6, 9))
    columns = [row / np.linalg.norm(row) for row in rows]
    amounts = [1.0] * 6
    for i, k in itertools.permutations(range(6), 2) if pairs else ():
        columns.append((rows[i] - rows[k]) / np.linalg.norm(rows[i] - rows[k]))
        amounts.append(pairs / 30)
    x = np.array(columns).T
    y = np.linalg.svd(x * np.sqrt(amounts))[0][:, :3]
    ratio = np.minimum((y.T @ x) ** 2, 1).sum(0).clip(max=1)
    y = np.linalg.svd(x * np.sqrt(amounts) * (1 - ratio + 1e-7) ** -0.25)[0][:, :3]
    got = value(FlagAggregator(rank=3, pairs=pairs, iterations=1, clip=False), rows.tolist())
    assert got == pytest.approx((y @ y.T @ rows.mean(0)).tolist(), abs=1e-9)


def test_length_of_one_does_not_change_the_subspace():
    longer = [*G[:3], [30.0 * x for x in G[3]]]
    assert direction(longer, rank=1, iterations=50) == pytest.approx(direction(G, rank=1, iterations=50), abs=1e-9)


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_flag_of_no_less_than_the_rank_of_all_gives_the_mean(rank):
    """Six updates in a plane of seven dimensions."""
    rng = torch.Generator().manual_seed(4)
    rows = torch.randn(6, 2, generator=rng).double() @ torch.randn(2, 7, generator=rng).double()
    assert value(FlagAggregator(rank=rank, clip=False), rows.tolist()) == pytest.approx(rows.mean(0).tolist())
    one = value(FlagAggregator(rank=1, clip=False), rows.tolist())
    assert one != pytest.approx(rows.mean(0).tolist(), rel=1e-3)


def test_length_of_one_changes_the_mean_on_the_subspace():
    """Both results lie on the one direction; the longer row moves how far along it they are."""
    longer, y = [*G[:3], [30.0 * x for x in G[3]]], direction(G, rank=1, iterations=50)
    lengths = []
    for rows in (G, longer):
        got = value(FlagAggregator(rank=1, iterations=50, clip=False), rows)
        along = sum(a * sum(row[j] for row in rows) / 4 for j, a in enumerate(y))
        assert got == pytest.approx([along * a for a in y], abs=1e-6)
        lengths.append(math.hypot(*got))
    assert lengths[1] > 2 * lengths[0]


def test_flag_turns_with_a_rotation():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(9)).double())[0]
    part = FlagAggregator(rank=2, iterations=20)
    base = torch.tensor(value(part, rows.tolist())).double()
    assert value(part, (rows @ turn).tolist()) == pytest.approx((base @ turn).tolist(), abs=1e-7)


@pytest.mark.parametrize("clip", [True, False])
def test_flag_with_an_update_of_next_to_no_length(clip):
    """As with one that is zero: its own share of the sum is nothing, and what Y would need of it is no float32."""
    rows = [[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [4.0, 1.0, 0.0], [1.5, 0.5, 0.2]]
    part = FlagAggregator(clip=clip)
    got, zero = (value(part, [*rows, [0.0, last, last]], torch.float32) for last in (1e-42, 0.0))
    assert got == pytest.approx(zero, rel=1e-5)
    assert all(map(math.isfinite, zero))


def test_flag_with_updates_whose_squares_run_over():
    """As with some that are zero; in float64, from 1e154 on."""
    rows = [[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [4.0, 1.0, 0.0], [1.5, 0.5, 0.2], [1.0, 0.0, 0.1]]
    for part in (FlagAggregator(), FlagAggregator(pairs=1.0), FlagAggregator(clip=False)):
        got, zero = (value(part, [*rows, [far, -far, far], [-far, far, 0.0]]) for far in (1e200, 0.0))
        assert got == pytest.approx(zero, rel=1e-9)


def test_flag_with_nothing_to_go_by():
    assert value(FlagAggregator(), [[0.0, 0.0]] * 4) == [0.0, 0.0]
    assert value(FlagAggregator(), [[0.0, 0.0], *[[1.0, 2.0]] * 3]) == pytest.approx([0.75, 1.5])


# ---- FoolsGold ------------------------------------------------------------------------------------------------------


def cosines(rows):
    t = torch.tensor(rows, dtype=torch.float64)
    t = t / t.norm(dim=1, keepdim=True)
    return t @ t.t()


def test_foolsgold_of_the_tables():
    alike = [[1, 0, 0], [1, 0.02, 0], [0, 1, 0], [0.6, 0, 0.8]]
    assert raw_weights(cosines(alike)).tolist() == pytest.approx([0.0002, 0.0002, 0.9996, 0.6399], abs=5e-5)
    assert foolsgold_weights(cosines(alike))[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
    twice = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0.6, 0.8]]
    assert raw_weights(cosines(twice)).tolist() == pytest.approx([0.0, 0.0, 0.4, 0.4])
    assert foolsgold_weights(cosines(twice))[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])


def by_loops(rows, kappa=1.0):
    """The algorithm as published, with plain floats."""

    def cos(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    m = len(rows)
    cs = [[cos(rows[i], rows[j]) if i != j else 0.0 for j in range(m)] for i in range(m)]
    most = [max(row) for row in cs]
    weights = []
    for i in range(m):
        row = [cs[i][j] * (most[i] / most[j] if most[i] < most[j] else 1.0) for j in range(m)]
        weights.append(min(1.0, max(0.0, 1 - max(row))))
    top = max(weights)
    weights = [min(w / top, 0.99) for w in weights]
    return [min(1.0, max(0.0, kappa * (math.log(w / (1 - w)) + 0.5))) if w else 0.0 for w in weights]


def test_foolsgold_against_plain_loops():
    for seed in range(20):
        rows = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed)).double().tolist()
        assert foolsgold_weights(cosines(rows))[0].tolist() == pytest.approx(by_loops(rows), abs=1e-9)


def test_all_alike_count_the_same_and_are_told():
    weights, is_alarm = foolsgold_weights(torch.ones(3, 3).double())
    assert (weights.tolist(), is_alarm) == ([1.0] * 3, True)
    assert value(FoolsGold(), [[1.0, 2.0]] * 3) == pytest.approx([1.0, 2.0])
    assert foolsgold_weights(torch.ones(1, 1).double())[0].tolist() == [1.0]
    assert value(FoolsGold(), [[1.0, 2.0]]) == [1.0, 2.0]


def test_that_all_are_alike_is_told_of_the_last_commit_only():
    part, params = FoolsGold(), {"w": torch.zeros(2, dtype=torch.float64)}
    state, found = part.init(params, None), [part.told(part.init(params, None))]
    for rows in ([[1.0, 2.0]] * 3, [[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]], [[1.0, 2.0]]):
        _, state = part.reduce(whole(rows), state, params, senders(len(rows)))
        found.append(part.told(decode(encode(state))))
    assert found == [{}, {"all_alike": True}, {}, {}]


def test_length_of_a_history_does_not_matter():
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(3)).double()
    scaled = rows * torch.tensor([1.0, 100.0, 0.01, 3.0, 1.0]).double().unsqueeze(1)
    assert torch.allclose(foolsgold_weights(cosines(rows.tolist()))[0], foolsgold_weights(cosines(scaled.tolist()))[0])


def test_history_is_by_client_and_over_rounds():
    """Sybils whose updates differ in every round, and add up to the same."""
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    part = FoolsGold()
    state = part.init(params, None)
    rounds = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    for rows in rounds:
        got, state = part.reduce(whole(rows), state, params, senders(3))
    assert got.values()["w"].tolist() == pytest.approx([0.0, 0.0, 1.0])
    assert {client: update.values()["w"].tolist() for client, update in state[0].items()} == {
        0: [1.0, 1.0, 0.0],
        1: [1.0, 1.0, 0.0],
        2: [0.0, 0.0, 2.0],
    }


def test_crowd_of_any_size_does_not_outweigh_the_honest():
    rng = torch.Generator().manual_seed(5)
    honest = [[1.0, 0.1, 0.0, 0.0], [0.0, 1.0, 0.1, 0.0], [0.0, 0.0, 1.0, 0.1]]
    for crowd in (2, 5, 40):
        sybils = (torch.tensor([-1.0, -1.0, -1.0, 9.0]) + 1e-3 * torch.randn(crowd, 4, generator=rng)).double()
        got = value(FoolsGold(), [*honest, *sybils.tolist()])
        assert got[3] < 0.5 and min(got[:3]) > 0.2  # noqa: PT018 - the crowd is out, the others are in


def test_foolsgold_looks_at_the_features_it_is_told():
    params = {"body": torch.zeros(2).double(), "head": torch.zeros(2).double()}
    index = Whole({"body": (2,), "head": (2,)})
    heads, bodies = ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]), ([9.0, 0.0], [0.0, 9.0], [9.0, 0.0])
    updates = [
        Update(index, {"body": torch.tensor(b).double(), "head": torch.tensor(h).double()})
        for b, h in zip(bodies, heads, strict=True)
    ]
    everything = FoolsGold().reduce(updates, ({}, False), params, senders(3))[0].values()["head"].tolist()
    head = FoolsGold(names=("head",)).reduce(updates, ({}, False), params, senders(3))[0].values()["head"].tolist()
    assert head == [0.0, 1.0] != everything
    with pytest.raises(ValueError, match=r"names must be parameters of the model, got \['tail'\]"):
        FoolsGold(names=("tail",)).reduce(updates, ({}, False), params, senders(3))
    with pytest.raises(ValueError, match=r"needs to know who sent each update, got 3 updates and 0 senders"):
        FoolsGold().reduce(updates, ({}, False), params)


@pytest.mark.parametrize("part", [FoolsGold(names=("head",)), SybilWall(names=("head",), own=0.0)])
def test_features_are_enough_however_small_a_part_of_the_model_they_are(part):
    """Two Sybils agree in the head, 3 of 1,003 coordinates; histories are of the head alone, held in part or whole."""
    rng = torch.Generator().manual_seed(1)
    params = {"body": torch.zeros(1000).double(), "head": torch.zeros(3).double()}
    heads = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 7.0]]).double()
    bodies = torch.randn(3, 1000, generator=rng).double()
    shapes = {"body": (1000,), "head": (3,)}
    for index in (Whole(shapes), Coords(shapes, {"body": torch.arange(1000), "head": torch.arange(3)})):
        updates = [Update(index, {"body": b, "head": h}) for b, h in zip(bodies, heads, strict=True)]
        got, state = part.reduce(updates, part.init(params, None), params, senders(3))
        assert got.values()["head"].tolist() == [0.0, 0.0, 7.0]
        assert torch.equal(got.values()["body"], bodies[2])
        histories = state[0] if isinstance(part, FoolsGold) else state
        assert [list(history.index.shapes) for history in histories.values()] == [["head"]] * 3


# ---- FedLD ----------------------------------------------------------------------------------------------------------

THREE = [[1.0, 0.0], [0.8, 0.6], [-0.6, 0.8]]
NOW = PrincipalGradients(warm_up=False)


def test_principal_gradients_of_the_table():
    """The directions are (√2, 0) and (0, 1), the eigenvalues 2/3 and 1/3. (1, 0) lies across the second.

    The table's second coordinate is 1/9, of which the first client's -1/3 is the sign of a rounding error: a
    projection of length 0 that was stretched to 1/3. Without it, 2/9.
    """
    assert value(NOW, THREE) == pytest.approx([2 / 9, 2 / 9], abs=1e-9)
    assert value(PrincipalGradients(), THREE) == pytest.approx([0.4, 0.466667], abs=1e-6)  # the first commit
    assert value(NOW, [[1.0, 2.0]] * 3) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_principal_gradients_of_two_that_mirror_each_other(kappa):
    """(3, 1) and (1, 3): s = (8, 2), so √10 8/10 along (1, 1)/√2, with one direction or both; a mean is (2, 2)."""
    part = PrincipalGradients(kappa, warm_up=False)
    assert value(part, [[3.0, 1.0], [1.0, 3.0]]) == pytest.approx([1.788854, 1.788854], abs=1e-6)
    assert value(part, [[1.0, 2.0], [-1.0, -2.0]]) == pytest.approx([0.0, 0.0], abs=1e-9)


def test_steps_behind_the_table_of_principal_gradients():
    """S = [[3, 2.4, -1.8], [2.4, 3, 0], [-1.8, 0, 3]] / 9. What each client makes of it alone, weighed by hand."""
    g = np.array(THREE)
    size, vectors = np.linalg.eigh(g @ g.T / 3)
    assert size[::-1] == pytest.approx([2 / 3, 1 / 3, 0.0])
    along = np.abs((g.T @ vectors).T[::-1][:2])
    assert along.tolist() == [pytest.approx([math.sqrt(2), 0.0], abs=1e-9), pytest.approx([0.0, 1.0], abs=1e-9)]
    assert abs(THREE[0][1]) == 0.0  # the first client lies across the second direction: it has no side of it
    each = [(math.copysign(2 / 3, x), math.copysign(1 / 3, y) if y else 0.0) for x, y in THREE]
    assert each[1:] == [(2 / 3, 1 / 3), (-2 / 3, 1 / 3)]
    assert value(NOW, THREE) == pytest.approx([sum(column) / 3 for column in zip(*each, strict=True)], abs=1e-9)
    stretched = (each[0][0], -1 / 3)  # the table's, of a rounding error below 0
    assert [sum(c) / 3 for c in zip(stretched, *each[1:], strict=True)] == pytest.approx([0.222222, 0.111111], abs=1e-6)


def released(rows, kappa, align):
    """§16 (2) with d-vectors, in NumPy."""
    g = np.array(rows)
    size, vectors = np.linalg.eigh(g @ g.T / len(g))
    size, vectors = size[::-1], vectors[:, ::-1]
    total = np.zeros(g.shape[1])
    for row in g:
        for j in range(max(1, int(kappa * len(g) + 1e-9))):
            w = g.T @ vectors[:, j]
            if size[j] < 1e-12 * size[0] or abs(row @ w) < 1e-12:
                continue
            if align and (g @ w >= 0).sum() * 2 < len(g):
                w = -w
            c = w if align else (row @ w) / (w @ w) * w
            total += c / np.linalg.norm(c) * np.linalg.norm(row) * size[j] / size.sum()
    return (total / len(g)).tolist()


def test_as_many_clients_on_both_sides_of_a_direction_are_no_matter_of_their_order():
    """An eigenvector has no sign of its own: of six clients three go each way along some directions."""
    draw, part = torch.Generator().manual_seed(3), PrincipalGradients(sign_align="majority", warm_up=False)
    for _ in range(20):
        rows = torch.randn(6, 8, generator=draw, dtype=torch.float64).tolist()
        order = torch.randperm(6, generator=draw).tolist()
        assert value(part, [rows[at] for at in order]) == pytest.approx(value(part, rows), abs=1e-9)
    # the longer of two that oppose leads, and two alike in length lead nowhere
    assert value(part, [[3.0, 0.0], [-1.0, 0.0]]) == pytest.approx([2.0, 0.0])
    assert value(part, [[-3.0, 0.0], [1.0, 0.0]]) == pytest.approx([-2.0, 0.0])
    assert value(part, [[1.0, 0.0], [-1.0, 0.0]]) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("align", ["none", "majority"])
@pytest.mark.parametrize("kappa", [0.3, 0.8, 1.0])
def test_principal_gradients_against_vectors(align, kappa):
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(5, 8)).tolist()
        part = PrincipalGradients(kappa, sign_align=align, warm_up=False)
        assert value(part, rows) == pytest.approx(released(rows, kappa, align == "majority"), abs=1e-9)


def test_principal_gradients_scale_and_turn():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(9)).double())[0]
    base = torch.tensor(value(NOW, rows.tolist())).double()
    assert value(NOW, (3 * rows).tolist()) == pytest.approx((3 * base).tolist())
    assert value(NOW, (rows @ turn).tolist()) == pytest.approx((base @ turn).tolist(), abs=1e-6)


def test_tensors_are_taken_apart_and_scalars_averaged():
    params = {"a": torch.zeros(2).double(), "s": torch.zeros(()).double()}
    updates = [
        Update(Whole({"a": (2,), "s": ()}), {"a": torch.tensor(row).double(), "s": torch.tensor(float(i)).double()})
        for i, row in enumerate(THREE)
    ]
    got = NOW.reduce(updates, 0, params)[0].values()
    assert got["a"].tolist() == pytest.approx([2 / 9, 2 / 9])
    assert float(got["s"]) == 1.0


def test_one_client_alone_keeps_its_update():
    assert value(NOW, [[3.0, -4.0]]) == pytest.approx([3.0, -4.0])  # ⌊0.8⌋ = 0 directions would be nothing


# ---- rank voting ----------------------------------------------------------------------------------------------------


def test_refusals():
    for make, says in (
        (lambda: FlagAggregator(rank=0), r"FlagAggregator\(rank=0\): must be at least 1, got 0\."),
        (lambda: FlagAggregator(epsilon=0.0), r"FlagAggregator\(epsilon=0\.0\): must lie in \(0, 1\), got 0\.0\."),
        (lambda: FoolsGold(kappa=0.0), r"FoolsGold\(kappa=0\.0\): must be finite and above 0, got 0\.0\."),
        (lambda: FoolsGold(min_holders=0), r"FoolsGold\(min_holders=0\): must be at least 1, got 0\."),
        (lambda: PrincipalGradients(kappa=0.0), r"PrincipalGradients\(kappa=0\.0\): must lie in \(0, 1\], got 0\.0\."),
        (lambda: PrincipalGradients(sign_align="all"), r"\(sign_align='all'\): must be 'none' or 'majority'\."),
    ):
        with pytest.raises(ValueError, match=says):
            make()

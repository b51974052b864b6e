from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partwise.core.errors import DataError
from partwise.populations import ClassPartition, DualDirichlet
from partwise.populations.partitions import IID, Dirichlet, LinearSizes, NaturalKey, QuantitySkew, Shards


def labels(n: int = 1000, classes: int = 7) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(n)
    return {"y": torch.from_numpy(rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2)))}


ALL = [
    IID(9),
    Dirichlet(9, alpha=0.2),
    Dirichlet(9, alpha=0.2, self_balancing=True),
    Shards(9),
    Shards(4, num_shards_per_partition=3),
    NaturalKey("y"),
    QuantitySkew(9, alpha=0.3),
    LinearSizes(9),
    DualDirichlet(9),
    ClassPartition(9, min_classes=2, max_classes=3),
]


@pytest.mark.parametrize("part", ALL, ids=repr)
def test_every_example_belongs_to_one_client(part):
    parts = part.split(labels(), seed=3)
    assert sorted(i for own in parts for i in own.tolist()) == list(range(1000))
    assert all(own.tolist() == sorted(own.tolist()) and own.dtype == np.int64 for own in parts)
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize("part", ALL, ids=repr)
def test_partition_follows_the_seed(part):
    first, again, other = (part.split(labels(), seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    if not isinstance(part, NaturalKey):
        assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_sizes_differ_by_one():
    assert sorted(len(p) for p in IID(7).split(labels(100), seed=0)) == [14, 14, 14, 14, 14, 15, 15]


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 40),
    alpha=st.sampled_from([1e-300, 1e-5, 0.01, 0.3, 5.0, 1e6]),
    minimum=st.integers(1, 9),
    balancing=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_dirichlet_always_ends_and_keeps_its_minimum(num, alpha, minimum, balancing, seed):
    n = num * minimum + seed % 50
    part = Dirichlet(num, alpha=alpha, min_partition_size=minimum, self_balancing=balancing)
    parts = part.split(labels(n), seed)
    assert len(parts) == num
    assert min(map(len, parts)) >= minimum
    assert sorted(i for own in parts for i in own.tolist()) == list(range(n))


def skew(parts: list[np.ndarray], y: np.ndarray) -> float:
    """Mean share of a client's most frequent label."""
    return float(np.mean([max(np.bincount(y[own])) / len(own) for own in parts]))


def test_dirichlet_alpha_sets_the_skew():
    columns = {"y": torch.arange(5000) % 10}
    y = columns["y"].numpy()
    found = [skew(Dirichlet(20, alpha=a).split(columns, seed=1), y) for a in (0.05, 0.5, 100.0)]
    assert found[0] > 0.6 > found[1] > 0.25 > found[2]
    assert found[2] < 0.2  # 0.1 would be exactly even


def test_dirichlet_shares_are_those_of_the_distribution():
    # Client 0's share of a label is Beta(alpha, (N - 1) alpha): mean 1/N, variance (N - 1) / N^2 / (N alpha + 1).
    columns = {"y": torch.zeros(1000, dtype=torch.int64)}
    part = Dirichlet(4, alpha=0.7, min_partition_size=1)
    shares = [len(part.split(columns, seed)[0]) / 1000 for seed in range(800)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)
    assert np.var(shares) == pytest.approx(3 / 16 / 3.8, rel=0.15)


FEW = {"y": torch.arange(4000) % 400}  # ten of each of 400 labels


@pytest.mark.parametrize(
    "part", [Dirichlet(100, alpha=a, min_partition_size=1) for a in (0.5, 10.0, 100.0, 1e6, np.inf)]
)
def test_labels_with_fewer_examples_than_clients_are_spread_over_all(part):
    sizes = [len(own) for own in part.split(FEW, seed=0)]
    # 40 in the mean; each label gives a client one with a chance of .1, or several: a variance of .09 + 100 Var(share).
    share_variance = 0.01 * 0.99 / (100 * min(part.alpha, 1e9) + 1)
    assert np.abs(np.array(sizes) - 40).max() < 5 * np.sqrt(400 * (0.09 + 100 * share_variance))


def test_every_client_has_its_share_of_few_examples_in_the_mean():
    columns = {"y": torch.arange(60) % 30}  # two of each label
    sizes = np.mean(
        [list(map(len, Dirichlet(12, alpha=5.0, min_partition_size=1).split(columns, s))) for s in range(200)], 0
    )
    assert np.abs(sizes - 5).max() < 1.0
    equal = DualDirichlet(100, clients_alpha=1e6, classes_alpha=1e6, min_partition_size=1).split(FEW, seed=0)
    assert np.abs(np.array(list(map(len, equal))) - 40).max() < 5 * np.sqrt(400 * 0.09)


def test_dirichlet_minimum_takes_from_the_largest():
    columns = {"y": torch.zeros(300, dtype=torch.int64)}
    plain = Dirichlet(10, alpha=0.05, min_partition_size=1).split(columns, seed=2)
    raised = Dirichlet(10, alpha=0.05, min_partition_size=12).split(columns, seed=2)
    assert min(map(len, plain)) < 12 == min(map(len, raised))
    assert max(map(len, raised)) < max(map(len, plain))


def test_self_balancing_limits_sizes():
    columns = {"y": torch.arange(6000) % 30}
    free = max(map(len, Dirichlet(10, alpha=0.1).split(columns, seed=6)))
    balanced = max(map(len, Dirichlet(10, alpha=0.1, self_balancing=True).split(columns, seed=6)))
    assert balanced <= 600 + 200 < free  # no client receives another label of 200 once it is above the average of 600


def test_shards_give_few_labels_to_each_client():
    columns = {"y": torch.arange(1000) % 10}
    parts = Shards(50, num_shards_per_partition=2).split(columns, seed=4)
    assert {len(p) for p in parts} == {20}
    assert max(len(np.unique(columns["y"].numpy()[p])) for p in parts) == 2


def test_shards_of_fixed_size_leave_examples_over():
    parts = Shards(6, num_shards_per_partition=3, shard_size=50).split(labels(), seed=4)
    assert [len(p) for p in parts] == [150] * 6
    assert len({i for p in parts for i in p.tolist()}) == 900


def test_shards_of_fixed_size_are_of_all_labels():
    columns = {"y": torch.arange(6000) % 10}  # 600 shards of ten, 60 of each label, of which 200 are dealt
    times = np.zeros(10)
    for seed in range(20):
        parts = Shards(100, num_shards_per_partition=2, shard_size=10).split(columns, seed=seed)
        assert sum(map(len, parts)) == len(set(np.concatenate(parts).tolist())) == 2000
        counts = [np.bincount(columns["y"].numpy()[part], minlength=10) for part in parts]
        assert all(set(count.tolist()) <= {0, 10, 20} for count in counts)
        times += np.sum(counts, 0) / 20
    # 20 shards of a label on average; over 20 draws with a standard deviation of sqrt(20 * .9 * 400 / 599 / 20) = 0.78
    assert np.abs(times / 10 - 20).max() < 4 * 0.78


def test_natural_key_orders_clients_by_key():
    parts = NaturalKey("user").split({"user": torch.tensor([7, 3, 7, -1, 3, 7])}, seed=0)
    assert [p.tolist() for p in parts] == [[3], [1, 4], [0, 2, 5]]


def test_quantity_skew_is_skewed_in_size_only():
    columns = {"y": torch.arange(20_000) % 4}
    parts = QuantitySkew(8, alpha=0.4).split(columns, seed=1)
    sizes = [len(p) for p in parts]
    assert max(sizes) > 4 * np.median(sizes)
    for own in parts:
        if len(own) > 1000:
            assert np.bincount(columns["y"].numpy()[own]) / len(own) == pytest.approx(0.25, abs=0.06)


def test_linear_sizes():
    assert [len(p) for p in LinearSizes(4).split(labels(200), seed=0)] == [20, 40, 60, 80]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IID(0), r"IID\(num_partitions=0\): needs at least one client, got 0\. Use 1"),
        (lambda: Dirichlet(5, alpha=0.0), r"Dirichlet\(alpha=0.0\): alpha must be above 0, got 0.0"),
        (lambda: Dirichlet(5, min_partition_size=0), r"Dirichlet\(min_partition_size=0\): must be at least 1, got 0"),
        (lambda: Shards(5, num_shards_per_partition=0), "needs at least one shard per client"),
        (lambda: Shards(5, shard_size=-1), "shard_size=-1"),
        (lambda: QuantitySkew(5, alpha=-1.0), "alpha must be above 0, got -1.0"),
        (lambda: QuantitySkew(5, min_partition_size=0), "must be at least 1"),
        (lambda: LinearSizes(-2), "needs at least one client, got -2"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("part", "needed"),
    [
        (IID(11), 11),
        (Dirichlet(3), 30),
        (Shards(6), 12),
        (QuantitySkew(11), 11),
        (LinearSizes(11), 11),
        (DualDirichlet(4), 40),
        (ClassPartition(4), 40),
    ],
)
def test_too_few_examples(part, needed):
    with pytest.raises(DataError, match=rf"= {needed} examples, got 10\. Lower the number of clients"):
        part.split(labels(10), seed=0)


def test_dual_dirichlet_has_the_stated_shares():
    """Concentrated on both sides: equal sizes, and every client has the classes in the data's proportions."""
    columns = labels(20_000, 4)
    parts = DualDirichlet(5, clients_alpha=1e7, classes_alpha=1e7).split(columns, seed=2)
    counts = np.array([np.bincount(columns["y"][part], minlength=4) for part in parts])
    assert np.abs(counts / counts.sum(0) - 0.2).max() < 0.01
    skewed = DualDirichlet(5, clients_alpha=0.5, classes_alpha=0.05).split(columns, seed=2)
    few = np.array([np.bincount(columns["y"][part], minlength=4) for part in skewed])
    assert (few > 0.05 * few.sum(1, keepdims=True)).sum() < 15  # of 20: most clients lack most classes
    assert few.sum(1).max() > 2 * few.sum(1).min()


def test_class_partition_gives_so_many_classes_and_nearly_equal_shares():
    columns = labels(30_000, 6)
    parts = ClassPartition(20, min_classes=2, max_classes=4).split(columns, seed=5)
    counts = np.array([np.bincount(columns["y"][part], minlength=6) for part in parts])
    has = counts > 0
    assert set(has.sum(1)) == {2, 3, 4}
    assert has.any(0).all()
    for c in range(6):
        shares = counts[has[:, c], c] / counts[:, c].sum() * has[:, c].sum()
        assert np.abs(shares - 1).max() < 0.5  # |N(1, 0.1)|, over their mean: five standard deviations


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualDirichlet(3, classes_alpha=0.0), r"DualDirichlet\(classes_alpha=0.0\): must be above 0, got 0.0"),
        (lambda: DualDirichlet(3, clients_alpha=-1.0), r"DualDirichlet\(clients_alpha=-1.0\): must be above 0"),
        (lambda: ClassPartition(3, min_classes=4, max_classes=2), r"must ascend from 1, got 4 and 2"),
        (lambda: ClassPartition(3, spread=-0.1), r"ClassPartition\(spread=-0.1\): must be at least 0"),
        (
            lambda: ClassPartition(3, max_classes=99).split(labels(), 0),
            r"needs max_classes from \d to \d+, all",
        ),
    ],
)
def test_wrong_silos_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_label_column_names_the_nearest():
    with pytest.raises(DataError, match=r"must name a column, got 'lable'\. Did you mean 'label'\?"):
        Dirichlet(2, partition_by="lable").split({"x": torch.zeros(30), "label": torch.zeros(30)}, seed=0)


def test_labels_must_be_one_per_example():
    with pytest.raises(DataError, match=r"needs one label per example, got shape \(30, 2\)"):
        Dirichlet(2).split({"y": torch.zeros(30, 2)}, seed=0)


@pytest.mark.parametrize("alpha", [1e308, float("inf")])
def test_a_huge_alpha_gives_everybody_as_much(alpha):
    columns = {"y": torch.arange(400) % 4}
    for part in (Dirichlet(5, alpha=alpha), QuantitySkew(5, alpha=alpha)):
        assert [len(found) for found in part.split(columns, seed=1)] == [80] * 5
    for found in Dirichlet(5, alpha=alpha).split(columns, seed=1):
        assert columns["y"][found].bincount().tolist() == [20] * 4


@pytest.mark.parametrize("alpha", [1e308, float("inf")])
def test_a_huge_alpha_takes_one_of_two_skews_away(alpha):
    columns = {"y": torch.arange(4000) % 4}
    by_size = DualDirichlet(5, classes_alpha=alpha).split(columns, seed=1)
    assert len({len(found) for found in by_size}) > 1
    for found in by_size:
        counts = columns["y"][found].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
    by_label = DualDirichlet(5, clients_alpha=alpha, classes_alpha=0.1).split(columns, seed=1)
    assert all(columns["y"][found].bincount(minlength=4).max() > 1.5 * len(found) / 4 for found in by_label)

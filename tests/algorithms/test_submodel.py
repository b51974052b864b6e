"""FedSubAvg through the real server and simulator: the enumeration, its weights, and the properties of §A.8."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.core.model import MeanSquaredError, Model
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain, Stacked
from partwise.schedulers import Synchronous
from toy_star import Clients, Cohorts, Log, full_batch, run, server, star_of

HELD = ((0, 1), (0, 2), (0, 1), (0,))
UPDATES = ((1.0, 4.0), (2.0, 6.0), (3.0, 8.0), (6.0,))

# cohort -> fedavg, heat, count
TABLE = {
    (0, 1): ((1.5, 2, 3), (1.5, 4, 12), (1.5, 4, 6)),
    (0, 2): ((2, 6, 0), (2, 12, 0), (2, 6, 0)),
    (0, 3): ((3.5, 2, 0), (3.5, 4, 0), (3.5, 4, 0)),
    (1, 2): ((2.5, 4, 3), (2.5, 8, 12), (2.5, 8, 6)),
    (1, 3): ((4, 0, 3), (4, 0, 12), (4, 0, 6)),
    (2, 3): ((4.5, 4, 0), (4.5, 8, 0), (4.5, 8, 0)),
}


class Rows(nn.Module):
    """A table of numbers; the client's loss is linear in the rows it holds, so that its update is written down."""

    def __init__(self, size=3):
        super().__init__()
        self.x = nn.Embedding(size, 1, _weight=torch.tensor([[0.25], [-1.0], [3.0]], dtype=torch.float64)[:size])

    def forward(self, ids):
        return self.x(ids).squeeze(-1)  # (b, held)


def linear(outputs, batch):
    return -(outputs * batch["to"]).sum(1)


def model():
    return Model(Rows, linear, inputs=("ids",), tables={"x.weight": ("ids",)})


def table_clients(sizes=(1, 1, 1, 1), held=HELD, updates=UPDATES):
    return Clients(
        [
            {"ids": torch.tensor([rows] * n), "to": torch.tensor([values] * n, dtype=torch.float64)}
            for rows, values, n in zip(held, updates, sizes, strict=True)
        ]
    )


def step(algorithm, cohort, population):
    """What one round adds to the three rows."""
    states, log = run(star_of(algorithm, model(), population, Cohorts((cohort,))))
    assert not log.of("lost")
    return (states[-1].streams["model"]["x.weight"] - Rows().x.weight.detach()).flatten()


def moments(algorithm, population):
    steps = torch.stack([step(algorithm, cohort, population) for cohort in TABLE])
    return steps.mean(0).tolist(), steps.var(0, correction=0).tolist()


@pytest.mark.parametrize(("column", "estimator"), list(enumerate(["fedavg", "heat", "count"])))
def test_enumeration(column, estimator):
    algorithm = FedSubAvg(estimator, full_batch(1, lr=1.0))
    for cohort, columns in TABLE.items():
        assert step(algorithm, cohort, table_clients()).tolist() == pytest.approx(columns[column], abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "mean", "variance"),
    [
        ("fedavg", (3, 3, 1.5), (7 / 6, 11 / 3, 2.25)),
        ("heat", (3, 6, 6), (7 / 6, 44 / 3, 36)),
        ("count", (3, 5, 3), (7 / 6, 23 / 3, 9)),
        ("capped", (3, 6, 3), (7 / 6, 44 / 3, 9)),  # row 2: K h / N = 1/2 is raised to 1
    ],
)
def test_means_and_variances_over_all_cohorts(estimator, mean, variance):
    got = moments(FedSubAvg(estimator, full_batch(1, lr=1.0)), table_clients())
    assert got[0] == pytest.approx(mean, abs=1e-12)
    assert got[1] == pytest.approx(variance, abs=1e-12)


def test_variance_follows_the_formula():
    """Var[heat] = (N/h)² (1/K) (1 - K/N) S²."""
    dense = torch.zeros(4, 3, dtype=torch.float64)
    for i, (rows, values) in enumerate(zip(HELD, UPDATES, strict=True)):
        for row, value in zip(rows, values, strict=True):
            dense[i, row] = value
    factor = torch.tensor([4 / 4, 4 / 2, 4 / 1]) ** 2 / 2 * (1 - 2 / 4)
    wanted = (factor * dense.var(0, correction=1)).tolist()
    assert moments(FedSubAvg("heat", full_batch(1, lr=1.0)), table_clients())[1] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("weighting", "mean"),
    [("size_fixed", (3.8, 7, 6)), ("size_ratio", (3.524603, 7.234127, 7)), ("uniform", (3, 6, 6))],
)
def test_weights_by_size(weighting, mean):
    algorithm = FedSubAvg("heat", full_batch(1, lr=1.0), weighting)
    population = table_clients((10, 20, 30, 40))
    assert moments(algorithm, population)[0] == pytest.approx(mean, abs=5e-7)


def test_released_code_for_one_cohort():
    """coef = (1, 2.5, 5), applied to the size-weighted mean of clients 1 and 2."""
    algorithm = FedSubAvg("heat", full_batch(1, lr=1.0), "size_ratio")
    got = step(algorithm, (0, 1), table_clients((10, 20, 30, 40))).tolist()
    assert got == pytest.approx((1.666667, 3.333333, 20), abs=5e-7)


# §A.8


ESTIMATORS = ("heat", "count", "capped", "fedavg")


def everything_held():
    generator = torch.Generator().manual_seed(0)
    to = torch.randn(4, 3, generator=generator).tolist()
    return table_clients((2, 1, 3, 1), ((0, 1, 2),) * 4, [tuple(t) for t in to])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_held_by_all_is_fedavg(estimator):
    local, population = LocalTraining(SGD(0.3), batch_size=1), everything_held()
    cohorts = Cohorts(((0, 1), (1, 3), (0, 2)))
    ends = [
        run(star_of(a, model(), population, cohorts))[0][-1].streams["model"]["x.weight"]
        for a in (FedSubAvg(estimator, local), FedAvg(local, "uniform"))
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_nobody_in_the_cohort_holds_keeps_its_bits(estimator):
    assert step(FedSubAvg(estimator, full_batch(3)), (0, 2), table_clients())[2] == 0


def test_full_participation_makes_heat_equal_count():
    everyone = (0, 1, 2, 3)
    heat, count = (step(FedSubAvg(e, full_batch(2)), everyone, table_clients()) for e in ("heat", "count"))
    assert torch.equal(heat, count)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clients_and_rows_may_be_renumbered(estimator):
    algorithm, order, rows = FedSubAvg(estimator, full_batch(1, lr=1.0)), (2, 0, 3, 1), (1, 2, 0)
    population = table_clients(
        held=[tuple(rows[r] for r in HELD[i]) for i in order], updates=[UPDATES[i] for i in order]
    )
    for cohort in combinations(range(4), 2):
        renamed = tuple(sorted(order.index(i) for i in cohort))
        got = step(algorithm, renamed, population)[list(rows)]
        assert got.tolist() == pytest.approx(step(algorithm, cohort, table_clients()).tolist(), abs=1e-12)


def test_held_but_unchanged_counts():
    """Client 3 also holds row 2 and leaves it as it is: that is evidence, not absence."""
    population = table_clients(held=(*HELD[:3], (0, 2)), updates=(*UPDATES[:3], (6.0, 0.0)))
    assert step(FedSubAvg("count", full_batch(1, lr=1.0)), (1, 3), population)[2] == 3
    assert step(FedSubAvg("heat", full_batch(1, lr=1.0)), (1, 3), population)[2] == 6


def test_splitting_a_table_changes_nothing():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            rows = Rows().x.weight.detach()
            self.a, self.b = (nn.Embedding(3, 1, _weight=rows.clone()) for _ in "ab")

        def forward(self, ids):
            return torch.cat([self.a(ids), self.b(ids)], 2).sum(2) / 2

    halves = Model(Split, linear, inputs=("ids",), tables={"a.weight": ("ids",), "b.weight": ("ids",)})
    for estimator in ESTIMATORS:
        algorithm = FedSubAvg(estimator, full_batch(1, lr=1.0))
        states, _ = run(star_of(algorithm, halves, table_clients(), Cohorts(((0, 1),))))
        change = states[-1].streams["model"]["a.weight"] - Rows().x.weight.detach()
        assert torch.equal(change.flatten() * 2, step(algorithm, (0, 1), table_clients()))
        assert torch.equal(states[-1].streams["model"]["a.weight"], states[-1].streams["model"]["b.weight"])


# The edges


def test_a_model_without_tables_is_held_whole():
    population = everything_held()
    plain = Model(Rows, linear, inputs=("ids",))
    ends = [
        run(star_of(a, plain, population, Cohorts(((0, 3),))))[0][-1].streams["model"]["x.weight"]
        for a in (FedSubAvg("heat", full_batch(2)), FedAvg(full_batch(2), "uniform"))
    ]
    assert torch.equal(*ends)


def test_ids_outside_the_table_lose_the_client():
    population = table_clients(held=((0, 1), (0, 3), (0, 1), (0,)))
    star = star_of(FedSubAvg("count", full_batch(1)), model(), population, Cohorts(((0, 1),)))
    _, log = run(star, server)
    (lost,) = log.of("lost")
    assert (lost["client"], lost["stage"]) == (1, "select")
    assert "ids of 'x.weight' must lie in 0..2, got 0..3" in lost["reason"]
    assert log.of("commit")[0]["clients"] == [0]


def test_uplink_carries_held_rows_only():
    index = FedSubAvg().select(None, None, star_of(FedSubAvg(), model(), table_clients(), Cohorts(())).site(1))
    assert index.rows["x.weight"].tolist() == [0, 2]
    assert index.gather({"x.weight": torch.eye(3)})["x.weight"].shape == (2, 3)


def test_messages():
    with pytest.raises(ValueError, match=r"FedSubAvg\(estimator='mean'\): must be one of heat, count, capped, fedavg"):
        FedSubAvg("mean")
    with pytest.raises(
        ValueError, match=r"FedSubAvg\(weighting='size'\): must be one of uniform, size_fixed, size_ratio"
    ):
        FedSubAvg(weighting="size")
    with pytest.raises(ValueError, match=r"'size_ratio'\): is a form of the 'heat' estimator, got 'count'"):
        FedSubAvg("count", weighting="size_ratio")
    with pytest.raises(ValueError, match=r"FedSubAvg\(cap=0\): must be above 0, got 0"):
        FedSubAvg(cap=0)


# What a round costs when the table is large

ROWS_ONLY = {  # operations that may be given a table: they look at some rows of it, or at none
    "aten.alias.default",
    "aten.detach.default",
    "aten.expand.default",
    "aten.index.Tensor",
    "aten.index_add_.default",
    "aten.index_copy_.default",
    "aten.index_select.default",
    "aten.view.default",
}


class LargeTensors(TorchDispatchMode):
    """Notes every operation that takes or gives a tensor of so many elements, once it is on."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.is_on = elements, False
        self.seen: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.count += self.is_on
        leaves = tree_leaves((args, kwargs, found))
        if self.is_on and any(isinstance(x, torch.Tensor) and x.numel() >= self.elements for x in leaves):
            self.seen.add(str(func))
        return found


@pytest.mark.parametrize("executor", [Plain(), Stacked()])
@pytest.mark.parametrize("estimator", ["heat", "capped", "count", "fedavg"])
def test_a_round_touches_a_table_only_where_it_is_held(estimator, executor):
    rows, dim, people = 20_011, 3, Clients([{"ids": torch.tensor([[7 * i, 90 + i], [i, 3]])} for i in range(6)])

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(rows, dim)

        def forward(self, ids):
            return self.table(ids).sum((1, 2))

    model = Model(Sum, MeanSquaredError("target"), inputs=("ids",), tables={"table.weight": ("ids",)})
    for columns in people.columns:
        columns["target"] = columns["ids"].sum(1).float()
    algorithm = FedSubAvg(estimator, LocalTraining(SGD(0.01), steps=2))
    star = star_of(algorithm, model, people, Synchronous(cohort=4, rounds=5))
    with LargeTensors(rows) as large:

        def turn_on(world):
            large.is_on = True

        log = Log(turn_on)
        Simulate(executor=executor).run(star.programs(), people, log)
    assert len(log.of("commit")) == 5
    assert large.count > 100
    assert large.seen <= ROWS_ONLY
    assert "aten.index_add_.default" in large.seen

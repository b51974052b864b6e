"""Every executor equals the plain one, on the jobs of every algorithm and workload; no list of them has a gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch

from partwise import algorithms, local, workloads
from partwise.algorithms import FedAvg, Scaffold
from partwise.core.plan import Executor, Job
from partwise.local import Shift
from partwise.populations import Dirichlet
from partwise.runtimes import executors
from partwise.testing import check_executor, check_jobs
from partwise.workloads import MNIST, Shakespeare
from toy_parts import (
    ALGORITHMS,
    EXACT,
    EXECUTORS,
    HAVE_TABLES,
    LOCAL,
    NEAR,
    NEAR_OF_ADAM,
    RULES,
    WORKLOADS,
    all_open,
    jobs_of,
    rounds,
    typed,
    workload,
)

# Where there are no tables there are no rows to hold; weights that all begin at 0 have no signs to keep.
PAIRS = [(name, a) for name in WORKLOADS for a in ALGORITHMS if name in HAVE_TABLES or not a.endswith("rows")]
PAIRS.remove(("SparseLogistic", "FedRank"))
OTHERS = ("Plain", "Pool", "Stacked")  # that do not leave it to one another


@pytest.fixture(scope="module")
def ready() -> Iterator[Mapping[str, Executor]]:
    """All executors, open, with the same processes from the first test to the last."""
    with all_open() as found:
        yield found


def both(rounds: tuple[list[Job], list[Job]]) -> list[Job]:
    return [*rounds[0], *rounds[1]]


def near(executor: str, rule: str = "") -> Mapping[torch.dtype, float]:
    if not executor.endswith("Stacked"):
        return EXACT
    return NEAR_OF_ADAM if rule.startswith("AdamW") else NEAR


@pytest.mark.parametrize("executor", EXECUTORS)
def test_executor_passes_its_contract(executor):
    check_executor(EXECUTORS[executor], near=near(executor))


@pytest.mark.parametrize("executor", OTHERS)
@pytest.mark.parametrize(("name", "algorithm"), PAIRS)
def test_algorithm_on_workload(ready, name, algorithm, executor):
    check_jobs(ready[executor], both(rounds(name, algorithm)), near=near(executor))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_algorithms_together_on_workload(ready, name, executor):
    """One job of each, in one batch."""
    jobs = [rounds(*pair)[1][i % 3] for i, pair in enumerate(PAIRS) if pair[0] == name]
    check_jobs(ready[executor], jobs, near=near(executor))


@pytest.mark.parametrize("executor", OTHERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["StdlibCode", "Shakespeare", "FashionMNIST"])
def test_local_rule_on_workload(ready, name, rule, executor):
    check_jobs(ready[executor], both(rounds(name, rule)), near=near(executor, rule))


@pytest.mark.parametrize("name", WORKLOADS)
def test_stacked_in_single_precision(ready, name):
    """The type that workloads have; to the others it is all the same."""
    check_jobs(ready["Stacked"], both(rounds(name, "Scaffold", torch.float32)), near=NEAR)


@pytest.mark.shared_data
@pytest.mark.parametrize("executor", OTHERS)
def test_plays_of_shakespeare(ready, shared_data, executor):
    source = Shakespeare(shared_data / "shakespeare", max_clients=3, max_examples_per_client=20, hidden=8)
    of = typed(source.build(1), torch.float64)
    for algorithm in (FedAvg(LOCAL), Scaffold(LOCAL)):
        check_jobs(ready[executor], both(jobs_of(of, algorithm)), near=near(executor))


@pytest.mark.shared_data
@pytest.mark.parametrize("executor", OTHERS)
def test_digits_of_mnist(ready, shared_data, executor):
    of = typed(MNIST(shared_data, partition=Dirichlet(2000), size="mlp").build(1), torch.float32)
    check_jobs(ready[executor], both(jobs_of(of, Scaffold(LOCAL))), near=near(executor))


# the lists


def test_every_algorithm_workload_and_executor_is_in_the_lists():
    of = workload("MNIST")
    assert {name for name in WORKLOADS if workload(name).model.tables} == HAVE_TABLES
    # `OneByte` takes no steps: there is nothing for an executor to run. `Distillation` wants public examples: its own
    # tests run it by several executors.
    apart = {"OneByte", "Distillation"}
    named = {name for name in algorithms.__all__ if isinstance(getattr(algorithms, name), type)}
    assert {type(make(of.model)).__name__ for make in ALGORITHMS.values()} == named - apart
    assert {name.split(",")[0] for name in WORKLOADS} == set(workloads.__all__)
    assert {type(executor).__name__ for executor in EXECUTORS.values()} == set(executors.__all__)


def test_every_local_part_is_met():
    """Optimisers, gradient terms and losses; `LocalTraining` is what makes plans of them."""
    plans = [job.plan for name in (*ALGORITHMS, *RULES) for job in both(rounds("FashionMNIST", name))]
    met = {type(part).__name__ for plan in plans for part in (plan.loss, plan.optimizer, *plan.gradient)}
    assert met >= set(local.__all__) - {"LocalTraining"}


def test_clients_differ_in_examples_rows_widths_and_steps():
    def seen(name: str, algorithm: str, parameter: str) -> tuple[int, int, int]:
        first, _ = rounds(name, algorithm)
        lengths = {len(job.data) for job in first}
        shapes = {tuple(job.start[parameter].shape) for job in first}
        return len(lengths), len(shapes), len({job.plan.num_steps(len(job.data)) for job in first})

    assert min(seen("ClickLog", "FedSubAvg", "items.weight")) >= 2
    assert min(seen("StdlibCode", "Scaffold, rows", "items.weight")) >= 2
    assert seen("MNIST", "HeteroFL", "conv1.weight")[1] == 2  # of two channels; a quarter and a half of them are one


@pytest.mark.parametrize(("name", "algorithm"), [("ClickLog", "Scaffold, rows"), ("LeafSynthetic", "Scaffold")])
def test_controls_of_the_second_round_are_not_zero(name, algorithm):
    for jobs, is_zero in zip(rounds(name, algorithm), (True, False), strict=True):
        for job in jobs:
            (shift,) = (term for term in job.plan.gradient if isinstance(term, Shift))
            assert all(bool((by == 0).all()) for by in shift.by.values()) == is_zero

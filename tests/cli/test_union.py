"""`partwise union`, and the complete protocol after it: union, answers, masked sums; from specifications alone."""

from __future__ import annotations

import numpy as np
import pytest

from partwise.core.workload import Workload
from partwise.experiment.spec import load
from toy_cli import call

CLICKS = """\
name = "clicks"
[workload]
name = "ClickLog"
num_clients = 8
num_items = 60
vocabulary = 12
exposures = 60
[algorithm]
name = "Deniable"
universe = "universe.npz"
randomness = "simulated"
inner = {name = "FedSubAvg", estimator = "count"}
[[client]]
name = "Clip"
max_norm = 0.5
[channel]
name = "Masked"
limit = 0.5
max_weight = 1
[scheduler]
name = "Synchronous"
cohort = 6
rounds = 2
"""


@pytest.fixture
def clicks(here):
    (here / "clicks.toml").write_text(CLICKS)
    return here


def held_by_anybody() -> dict[str, list[int]]:
    """Table -> rows, from the examples themselves."""
    found = load("clicks.toml").workload
    workload = found if isinstance(found, Workload) else found.build(load("clicks.toml").seed)
    population, rows = workload.population, {}
    for table, columns in workload.model.tables.items():
        ids = [
            population.data(c).columns()[column].numpy().reshape(-1) for c in population.clients for column in columns
        ]
        rows[table] = sorted(set(np.concatenate(ids).tolist()))
    return rows


@pytest.mark.parametrize("more", [(), ("--bloom", "60")])
def test_the_union_is_that_of_the_examples(clicks, more):
    said, _ = call("union", "clicks.toml", "universe.npz", *more)
    right = held_by_anybody()
    with np.load("universe.npz") as file:
        for table, rows in right.items():
            assert set(file[table].tolist()) >= set(rows)
            assert more or file[table].tolist() == rows
    assert "rows are held by somebody" in said
    assert "The union is in universe.npz" in said


def test_the_union_has_the_name_that_was_given(clicks):
    assert "The union is in universe\n" in call("union", "clicks.toml", "universe")[0]
    assert (clicks / "universe").is_file()
    assert not (clicks / "universe.npz").exists()
    call("run", "clicks.toml", "-q", "algorithm.universe=universe", "--folder", "ran")


def test_then_a_secure_run_whose_report_says_what_is_seen(clicks):
    call("union", "clicks.toml", "universe.npz")
    call("run", "clicks.toml", "--folder", "ran")
    call("report", "ran", "--out", "report.html")
    page = " ".join((clicks / "report.html").read_text().split())
    assert "sums over at least 5 clients" in page
    # Of the specification's table: epsilon of a round and for ever at 15/16; and the posterior after a yes.
    assert "a round tells epsilon 2.019 and all rounds 2.708" in page
    assert "believes so with 0.0707 after a yes" in page


def test_too_small_a_cohort_is_refused_before_the_first_round(clicks):
    _, error = call("run", "clicks.toml", "scheduler.cohort=4", "--folder", "ran", code=2)
    assert "opens no sum of fewer than min_contributors=5 clients" in " ".join(error.split())
    assert "which commits 4 at most" in " ".join(error.split())


def test_what_cannot_be(clicks):
    _, error = call("union", "tiny.toml", "universe.npz", code=2)
    assert "got a model without tables" in " ".join(error.split())
    _, error = call("union", "clicks.toml", "no/such/folder.npz", code=2)
    assert "must be writable, got: No such file or directory" in " ".join(error.split())
    _, error = call("union", "clicks.toml", "universe.npz", "--contributors", "9", code=2)
    assert "needs 9 clients that" in " ".join(error.split())


def test_a_round_that_comes_to_nothing_is_told_and_the_run_goes_on(clicks):
    """A third of the uploads are lost: in some rounds fewer than five are left, and nothing is opened."""
    call("union", "clicks.toml", "universe.npz")
    flaky = 'workload.reliability={name="Unreliable", upload=0.25, seed=1}'
    said, _ = call("run", "clicks.toml", flaky, "scheduler.rounds=3", "--folder", "ran")
    assert "a round was skipped at version" in said
    assert "Nothing was opened" in said

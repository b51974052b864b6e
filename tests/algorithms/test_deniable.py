"""Deniable rows against plain loops, alone and behind a masked sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from partwise.aggregators import Mean
from partwise.algorithms import Deniable, FedAvg, FedSubAvg, LocalOnly, Scaffold
from partwise.algorithms.answers import Level
from partwise.algorithms.deniable import _mended, read_universe, write_universe
from partwise.channels import Masked, Plain
from partwise.channels.unions import MaskedUnion
from partwise.core.aggregate import sum_updates
from partwise.core.algorithm import Task
from partwise.core.errors import CompositionError, DataError
from partwise.core.index import Rows
from partwise.core.plan import Trained
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.local import SGD, LocalTraining
from partwise.programs.census import count
from partwise.programs.union import find_union
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from toy_federation import LOCAL, star
from toy_star import Log

HONEST = Level(1, 0, 1, 0)
INNER = FedSubAvg("count", LOCAL)


def deniable(level=Level(), **more):  # noqa: B008 - frozen
    return Deniable(INNER, (level,), randomness="simulated", **more)


def asked(algorithm, client=2, task=0, of=None):
    site = (of or star("fedavg")).site(client)
    own = algorithm.client_init(site)
    return site, own, algorithm.select(Task(task, 0, 0, 0), own, site)


def test_the_honest_level_asks_for_what_it_holds():
    site, _, index = asked(deniable(HONEST))
    assert torch.equal(index.rows["table.weight"], site.table_rows("table.weight"))
    assert index.rows["out.weight"] is None


def test_everything_is_asked_for():
    _, _, index = asked(deniable(Level(1, 1, 1, 1)))
    assert index.rows["table.weight"].tolist() == list(range(60))


def test_answers_are_drawn_anew_and_lasting_ones_stay():
    algorithm = deniable(Level.even(0.8))
    site, own, one = asked(algorithm)
    other = algorithm.select(Task(1, 0, 0, 0), own, site)
    assert one.rows["table.weight"].tolist() != other.rows["table.weight"].tolist()
    again = algorithm.select(Task(0, 9, 3, 0), own, site)
    assert torch.equal(one.rows["table.weight"], again.rows["table.weight"])
    values = one.gather({n: torch.zeros(t.shape) for n, t in site.like.items()})
    trained = Trained({n: torch.ones_like(v) for n, v in values.items()}, 1, 0.0, 0)
    _, after = algorithm.finish({"model": values}, trained, one, Task(0, 0, 0, 0), own, site)
    assert after.lasting is own.lasting
    assert after.secret == own.secret


def test_padded_rows_are_zero_and_weigh_nothing():
    algorithm = deniable(Level.even(0.8))
    site, own, index = asked(algorithm)
    values = index.gather({n: torch.zeros(t.shape) for n, t in site.like.items()})
    trained = Trained({n: torch.ones_like(v) for n, v in values.items()}, 1, 0.0, 0)
    update = algorithm.finish({"model": values}, trained, index, Task(0, 0, 0, 0), own, site)[0]["model"]
    held = set(site.table_rows("table.weight").tolist())
    rows = index.rows["table.weight"].tolist()
    assert 0 < sum(row in held for row in rows) < len(rows)
    for row, value, weight in zip(rows, update.value["table.weight"], update.weight["table.weight"], strict=True):
        assert value.tolist() == [float(row in held)] * 5
        assert float(weight) == float(row in held)
    assert float(update.weight["out.weight"]) == 1.0


def test_ids_that_were_not_asked_for_are_mended():
    has = torch.tensor([True, False, False, True, True])
    ids = torch.tensor([[0, 1, 3], [1, 2, 1], [1, 4, 2], [3, 3, 0]])
    mended, ok = _mended(ids, has)
    assert mended[ok].tolist() == [[0, 0, 3], [4, 4, 4], [3, 3, 0]]
    assert ok.tolist() == [True, False, True, True]
    single, ok = _mended(torch.tensor([0, 1, 4]), has)
    assert (single.tolist(), ok.tolist()) == ([0, 1, 4], [True, False, True])


def test_examples_are_those_that_can_be_trained_on():
    algorithm = deniable(Level.even(0.75))
    site, own, index = asked(algorithm)
    data = algorithm.examples(index, own, site)
    rows = set(index.rows["table.weight"].tolist())
    words = site.data.columns()["words"]
    kept = [row for row in words.tolist() if set(row) & rows]
    assert len(data) == len(kept) < len(words)
    positions = index.rows["table.weight"].tolist()
    for found, original in zip(data.columns()["words"].tolist(), kept, strict=True):
        for at, word in zip(found, original, strict=True):
            assert positions[at] == word or word not in rows


def test_a_client_without_examples_left_answers_at_once():
    none = Level(0, 0, 1, 0)
    _, log, reason = run(deniable(none), Plain())
    assert reason == "done"
    assert log.of("lost") == []
    assert {r["steps"] for r in log.of("reply")} == {0}


def test_steps_do_not_tell_which_rows_are_held():
    """Steps that count the examples of rows asked for say, after a few rounds, how many examples each row has."""
    local = LocalTraining(SGD(0.2), batch_size=4, epochs=2)
    algorithm = Deniable(FedSubAvg("count", local), (Level.even(0.75),), randomness="simulated")
    _, log, _ = run(algorithm, Masked(0.5, 16, 1, min_contributors=3))
    assert len(log.of("reply")) == 12
    for reply in log.of("reply"):
        assert reply["steps"] == 2 * math.ceil((9 + 4 * reply["client"]) / 4)


def test_a_client_whose_rows_were_not_asked_for_takes_as_long():
    algorithm, site = deniable(), star("fedavg").site(2)
    own, held = algorithm.client_init(site), site.table_rows("table.weight")
    others = torch.tensor(sorted(set(range(60)) - set(held.tolist())))
    index = Rows({n: tuple(t.shape) for n, t in site.like.items()}, dict.fromkeys(site.like))
    index = Rows(index.shapes, {**index.rows, "table.weight": others})
    values = index.gather({n: torch.zeros(t.shape) for n, t in site.like.items()})
    task, data = Task(0, 0, 0, 0), algorithm.examples(index, own, site)
    assert algorithm.plan({"model": values}, index, task, own, site).num_steps(len(data)) == LOCAL.steps
    assert len(data) == len(site.data)
    trained = Trained({n: torch.ones_like(v) for n, v in values.items()}, 3, 0.7, 0)
    update = algorithm.finish({"model": values}, trained, index, task, own, site)[0]["model"]
    assert not any(v.any() for v in update.values().values())
    assert not update.weight["table.weight"].any()


def run(algorithm, channel, runtime=None, **more):
    of = star("fedavg", algorithm=algorithm, channel=channel, client_chain={"model": chain(Clip(0.5))},
              scheduler=Synchronous(cohort=6, rounds=2), **more)  # fmt: skip
    log = Log()
    states, reason = (runtime or Simulate()).run(of.programs(), of.population, log)
    return states, log, reason


def model_of(found):
    return found[0][SERVER].streams["model"]


def test_the_honest_level_is_plain_submodel_averaging():
    one, other = model_of(run(INNER, Plain())), model_of(run(deniable(HONEST), Plain()))
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_the_secure_round_is_the_plain_one_on_rows_that_enough_ask_for():
    """The whole protocol: a union, answers, sparse masks, `count`; the mean is over those who hold and asked."""
    masked = Masked(0.5, 24, 1, "sparse", min_contributors=3)
    level = Level(1, 0.9, 1, 0.9)
    one, other = run(deniable(level), masked), run(deniable(level), Plain())
    assert one[1].of("skipped") == one[1].of("lost") == []
    a, b = model_of(one), model_of(other)
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-4  # in every row that is asked for by six or fewer


def test_rows_are_averaged_over_those_who_trained_them():
    of, algorithm = star("fedavg"), deniable(Level.even(0.8))
    updates, oracle = [], {}
    for client in range(5):
        site, own, index = asked(algorithm, client, of=of)
        values = index.gather({n: torch.zeros(t.shape) for n, t in site.like.items()})
        trained = Trained({n: torch.full_like(v, client + 1.0) for n, v in values.items()}, 1, 0.0, 0)
        updates.append(algorithm.finish({"model": values}, trained, index, Task(0, 0, 0, 0), own, site)[0]["model"])
        for row in set(index.rows["table.weight"].tolist()) & set(site.table_rows("table.weight").tolist()):
            oracle.setdefault(row, []).append(client + 1.0)
    params = {n: torch.zeros(t.shape) for n, t in of.like.items()}
    total = Mean("holders").reduce(sum_updates(updates, params), (), params)[0]
    total.index.scatter_add_(params, total.values())
    for row in range(60):
        expected = np.mean(oracle[row]) if row in oracle else 0.0
        assert params["table.weight"][row].tolist() == pytest.approx([expected] * 5)


def test_union_to_rounds_between_processes(tmp_path):
    union = find_union(star("fedavg"), MaskedUnion(), Processes(), Log())
    write_universe(tmp_path / "union.npz", union)
    algorithm = deniable(Level.even(7 / 8), universe=str(tmp_path / "union.npz"))
    _, _, index = asked(algorithm)
    assert set(index.rows["table.weight"].tolist()) <= set(union.rows["table.weight"].tolist())
    channel = Masked(0.5, 20, 1, min_contributors=3)
    here, there = run(algorithm, channel), run(algorithm, channel, Processes())
    assert here[2] == there[2] == "done"
    assert there[1].of("lost") == []
    assert all(torch.equal(model_of(here)[n], model_of(there)[n]) for n in model_of(here))


def test_secrets():
    site = star("fedavg").site(2)
    system = Deniable(INNER)
    assert system.client_init(site).secret != system.client_init(site).secret
    assert deniable().client_init(site).secret == deniable().client_init(site).secret
    levels = Deniable(INNER, (HONEST, Level()))
    assert [levels.level(star("fedavg").site(c)) for c in (0, 1, 2)] == [HONEST, Level(), HONEST]


def test_what_does_not_fit():
    with pytest.raises(CompositionError, match=r"Deniable\(Scaffold\): hides the rows of one stream, got \['control'"):
        Deniable(Scaffold(LOCAL))
    with pytest.raises(CompositionError, match=r"Deniable\(FedAvg\): hides which rows are held, got an algorithm"):
        asked(Deniable(FedAvg(LOCAL)))
    with pytest.raises(ValueError, match="needs at least one level"):
        Deniable(INNER, ())
    with pytest.raises(ValueError, match="must be 'system' or 'simulated'"):
        Deniable(INNER, randomness="numpy")


@pytest.mark.parametrize("estimator", ["heat", "capped"])
def test_nobody_counts_who_holds_what(estimator):
    """Each count would draw lasting answers anew: a node that is asked 200 times had told its client's rows."""
    of = star("fedavg", algorithm=LocalOnly(Deniable(FedSubAvg(estimator, LOCAL)), ("out.*",)))
    with pytest.raises(CompositionError, match=r"does not say who holds what, got a part that divides by how many"):
        Simulate().run(of.programs(), of.population, Log())
    with pytest.raises(CompositionError, match=r"Use FedSubAvg\('count'\)"):
        count(of, [2])


def test_universe_files(tmp_path):
    path = tmp_path / "u.npz"
    write_universe(path, Rows({"E": (9, 2), "w": (3,)}, {"E": torch.tensor([2, 5]), "w": None}))
    assert {n: r.tolist() for n, r in read_universe(path).items()} == {"E": [2, 5]}
    np.savez(path, E=np.array([1.5]))
    with pytest.raises(DataError, match="must hold row numbers"):
        read_universe(path)
    with pytest.raises(DataError, match=r"must be a file of write_universe\(\)"):
        read_universe(tmp_path / "missing.npz")
    np.savez(path, E=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"must be a file of write_universe\(\)"):  # nothing is unpickled
        read_universe(path)

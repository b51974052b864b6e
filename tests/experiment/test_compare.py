from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from partwise.core.errors import CheckpointError, DataError
from partwise.experiment.compare import by_time, compare
from partwise.experiment.headline import headline, sentence
from partwise.experiment.runs import read_run, read_runs
from partwise.experiment.store import RunStore
from toy_runs import write_run

# version, seconds, uplink, downlink, score
SLOW = [
    (0, 0.0, 0, 0, 0.50),
    (10, 7.0, 5000, 6000, 0.61),
    (20, 15.0, 10_000, 12_000, 0.73),
    (30, 22.0, 15_000, 18_000, 0.71),
]
QUICK = [(0, 0.0, 0, 0, 0.48), (10, 3.0, 110, 130, 0.72), (20, 6.5, 220, 260, 0.83), (30, 9.5, 330, 390, 0.81)]
MODEL = {"clients": 9, "model": {"bytes": 1000, "parameters": 250, "tables": {}}}


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    spread = {
        "mean": [0.5, 0.6, 0.7, 0.69],
        "p10": [0.3, 0.4, 0.5, 0.44],
        "p90": [0.7, 0.8, 0.9, 0.88],
        "worst": [0.1, 0.1, 0.2, 0.17],
    }
    return write_run(
        tmp_path / "slow", SLOW, spread=spread, replies=[0, 1, 4, 1] * 3, meta={"wall_seconds": 31.5}, population=MODEL
    )


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    troubles = [("refused", 3, 12, "", "not finite"), ("lost", 2, 5, "train", "gone")]
    return write_run(tmp_path / "quick", QUICK, replies=[0, 1, 4, 1, 8], troubles=troubles, population=MODEL)


def test_numbers_of_two_runs(slow, quick):
    first, second = compare([slow, quick])
    assert (first.name, first.algorithm, first.metric, first.scope) == ("slow", "FedAvg()", "auc", "pooled")
    assert (first.final, first.final_version, first.best, first.best_version) == (0.71, 30, 0.73, 20)
    assert (second.final, second.final_version, second.best, second.best_version) == (0.81, 30, 0.83, 20)
    assert first.target == second.target == 0.71
    # the first run was already there once before its end
    assert (first.target_version, first.target_uplink, first.target_downlink, first.target_seconds) == (
        20,
        10_000,
        12_000,
        15.0,
    )
    assert (second.target_version, second.target_uplink, second.target_downlink, second.target_seconds) == (
        10,
        110,
        130,
        3.0,
    )
    assert (first.target_bytes, second.target_bytes) == (22_000, 240)
    assert (first.uplink, first.downlink, first.wall_seconds, second.wall_seconds) == (15_000, 18_000, 31.5, None)
    assert (first.mean, first.p10, first.p90, first.worst) == (0.69, 0.44, 0.88, 0.17)
    assert (second.mean, second.p10, second.p90, second.worst) == (None, None, None, None)


def test_uplink_share_counts_answered_and_refused_tasks(slow, quick):
    first, second = compare([slow, quick])
    assert first.uplink_share == 15_000 / 12 / 1000
    assert second.uplink_share == 330 / 6 / 1000  # five replies and one refused; a lost client sent nothing


def test_uplink_share_leaves_out_tasks_after_the_last_version(tmp_path):
    """The run ended in its next version: the bytes of what was answered for that are not on record."""
    population = {"model": {"parameters": 100, "bytes": 1000}}
    two = write_run(
        tmp_path / "two", [(0, 0.0, 0, 0, 0.5), (1, 1.0, 600, 900, 0.6)], replies=[0, 1, 2], population=population
    )
    none = write_run(tmp_path / "none", [(0, 0.0, 0, 400, 0.5)], replies=[0, 1, 2], population=population)
    for folder in (two, none):
        with RunStore(folder) as store:
            store.append_replies([(2, 4, 50, 20, 640, 0, 0, 0.0, 0.25, 0.75, 1.0, 0.5, 0)])
            store.append_events([(1.0, "refused", {"client": 5, "version": 1, "reason": "nan"})])
    assert [row.uplink_share for row in compare([two, none])] == [600 / 3 / 1000, None]


def test_uplink_share_needs_the_model(tmp_path):
    assert compare([write_run(tmp_path / "a", SLOW, replies=[0])])[0].uplink_share is None


def test_target_that_is_not_reached(slow, quick):
    first, second = compare([slow, quick], target=0.8)
    assert (first.target_version, first.target_bytes, first.target_seconds) == (None, None, None)
    assert second.target_version == 20


def test_lower_is_better(tmp_path):
    runs = [
        write_run(
            tmp_path / "a",
            [(1, 1.0, 10, 10, 0.9), (2, 2.0, 20, 20, 0.6)],
            metric="loss",
            meta={"higher_is_better": False},
        ),
        write_run(
            tmp_path / "b",
            [(1, 1.0, 11, 11, 0.5), (2, 2.0, 22, 22, 0.7)],
            metric="loss",
            meta={"higher_is_better": False},
        ),
    ]
    first, second = compare(runs)
    assert (first.best, first.target_version) == (0.6, 2)
    assert (second.best, second.best_version, second.target_version) == (0.5, 1, 1)


def test_central_goes_before_pooled_where_all_have_it(tmp_path):
    a = write_run(tmp_path / "a", QUICK, scope="central", spread={"pooled": [0.1, 0.2, 0.3, 0.4]})
    b = write_run(tmp_path / "b", QUICK, scope="pooled")
    assert compare([a])[0].scope == "central"
    assert [row.final for row in compare([a, b])] == [0.4, 0.81]
    assert compare([a], scope="pooled")[0].final == 0.4


def test_scores_that_are_not_numbers(tmp_path):
    broken = write_run(tmp_path / "a", [(1, 1.0, 1, 1, 0.6), (2, 2.0, 2, 2, math.nan)])
    nothing = write_run(tmp_path / "b", [(1, 1.0, 1, 1, math.nan)])
    row, other = compare([broken, nothing])
    assert math.isnan(row.final)
    assert (row.best, row.best_version, row.target, row.target_version) == (0.6, 1, 0.6, 1)  # the last that is one
    assert math.isnan(other.best)
    assert other.target_version is None
    assert compare([nothing])[0].target is None
    assert read_run(broken).scores["auc", "pooled"][0].value == 0.6


def test_names_differ(tmp_path):
    def run(folder: str, name: str, algorithm: str) -> Path:
        return write_run(tmp_path / folder, QUICK, meta={"name": name, "algorithm": algorithm})

    same = [run("a", "run", "FedAvg()"), run("b", "run", "FedSubAvg(estimator='count')")]
    assert [r.label for r in read_runs(same)] == ["run FedAvg", "run FedSubAvg"]
    alike = [*same, run("c", "run", "FedAvg(local=1)")]
    assert [r.label for r in read_runs(alike)] == ["a", "b", "c"]
    assert [r.label for r in read_runs([same[0], same[0]])] == ["run #1", "run #2"]


def test_a_folder_that_is_no_run(tmp_path, slow):
    with pytest.raises(CheckpointError, match=r"there must be a run's record.sqlite, got no folder"):
        compare([slow, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty.*got a folder without one. Name a run's folder"):
        compare([tmp_path / "empty"])
    assert list((tmp_path / "empty").iterdir()) == []


def test_no_folders():
    with pytest.raises(ValueError, match=r"read_runs\(\[\]\): needs at least one run, got none"):
        compare([])


def test_runs_with_different_metrics(tmp_path, slow):
    other = write_run(tmp_path / "b", QUICK, metric="accuracy", spread={})
    with pytest.raises(
        DataError, match=r"must have one main metric, got auc \(slow\), accuracy \(b\). They recorded none in common"
    ):
        compare([slow, other])
    with pytest.raises(DataError, match=r"all must have recorded auc, got accuracy \(pooled\) from 'b'.*Name a score"):
        compare([slow, other], metric="auc")
    for target in (math.nan, math.inf, -math.inf):
        with pytest.raises(DataError, match=rf"target={target}.*must be a finite number, got {target}"):
            compare([slow], target=target)


def test_a_score_that_grew_without_bound_is_no_goal(tmp_path):
    """The first run's loss was 2.5, and then infinite: a rival that is infinite from the beginning reached nothing."""
    loss = {"metric": "loss", "meta": {"higher_is_better": False}}
    first = write_run(tmp_path / "a", [(1, 1.0, 1, 1, 4.0), (2, 2.0, 2, 2, 2.5), (3, 3.0, 3, 3, math.inf)], **loss)
    rival = write_run(tmp_path / "b", [(1, 1.0, 1, 1, math.inf), (2, 2.0, 2, 2, math.inf)], **loss)
    better = write_run(tmp_path / "c", [(1, 1.0, 1, 1, 3.0), (2, 2.0, 2, 2, 2.0)], **loss)
    runs = read_runs([first, rival, better])
    rows = compare(runs)
    assert [(row.target, row.target_version) for row in rows] == [(2.5, 2), (2.5, None), (2.5, 2)]
    assert rows[0].final == math.inf
    assert compare([rival])[0].target is None
    assert headline(runs, rows).startswith("c reached a’s last finite Loss of 2.500 in 2 of 2 rounds, where a took 2")


def test_a_run_without_scores(tmp_path):
    empty = write_run(tmp_path / "a", [])
    with pytest.raises(DataError, match=r"got nothing from 'a'"):
        compare([empty])


def test_runs_that_could_not_be_tested_are_compared_by_their_training_loss(slow, tmp_path):
    runs = [write_run(tmp_path / name, [], losses=losses) for name, losses in (("a", [0.9, 0.7]), ("b", [0.6, 0.8]))]
    rows = compare(runs)
    assert [(row.metric, row.scope, row.final, row.best, row.target_version) for row in rows] == [
        ("train_loss", "cohort", 0.7, 0.7, 2), ("train_loss", "cohort", 0.8, 0.6, 1),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"all must have recorded auc, got train_loss \(cohort\) from 'a'"):
        compare([slow, *runs])
    with pytest.raises(DataError, match=r"all must have recorded auc \(pooled\), got train_loss"):
        compare(runs, scope="pooled")


# Sentences


def words(*folders: Path, target: float | None = None) -> str:
    runs = read_runs(folders)
    return headline(runs, compare(runs, target=target), is_own_target=target is not None)


def test_sentence_of_a_run_that_did_better(slow, quick):
    assert words(slow, quick) == (
        "quick reached slow’s final AUC of 0.710 in 10 of 30 rounds, where slow took 20, and sent 1/92 of the bytes "
        "until then. It ended at 0.810, slow at 0.710."
    )


def test_sentence_of_a_run_that_did_worse(slow, quick):
    assert words(quick, slow) == (
        "slow did not reach quick’s final AUC of 0.810 within its 30 rounds: it ended at 0.710 and its best was 0.730."
    )


def test_sentence_of_a_run_that_needed_more(tmp_path, slow):
    dear = write_run(tmp_path / "dear", [(20, 1.0, 20_000, 15_000, 0.6), (40, 2.0, 40_000, 30_000, 0.71)])
    assert words(slow, dear) == (
        "dear reached slow’s final AUC of 0.710 in 40 of 40 rounds, where slow took 20, and sent 3.2 times the bytes "
        "until then. Both ended at 0.710."
    )


def test_sentence_with_a_given_target(slow, quick):
    assert words(slow, quick, target=0.8) == (
        "quick reached the AUC of 0.800 in 20 of 30 rounds; slow did not reach it."
    )


def test_sentence_of_one_run(slow, tmp_path):
    assert words(slow) == (
        "slow stands at AUC 0.710 after 30 rounds; 33.0 kB were sent in 22.0 s of virtual time, each upload being "
        "125 % of the full model in the mean."
    )
    nothing = write_run(tmp_path / "b", [(1, 0.0, 1, 1, math.nan)], meta={"num_clients": 3})
    assert words(nothing) == "b made 1 round with 3 clients; its AUC is not defined at the end; 2 B were sent."
    assert "slow has" not in words(nothing, slow)
    meta = {"runtime": "Processes(workers=2)"}
    wall = write_run(tmp_path / "wall", [(1, 22.0, 1, 1, 0.7)], meta=meta)
    assert words(wall) == "wall stands at AUC 0.700 after 1 round; 2 B were sent in 22.0 s by its clock."


def test_the_headline_is_about_the_quickest(slow, quick, tmp_path):
    middle = write_run(tmp_path / "middle", [(15, 1.0, 500, 600, 0.9)], meta={"scheduler": "Buffered(size=3)"})
    runs = read_runs([slow, middle, quick])
    rows = compare(runs)
    assert headline(runs, rows).startswith("quick reached")
    assert sentence(runs[1], rows[1], rows[0]).startswith(
        "middle reached slow’s final AUC of 0.710 in 15 of 15 versions"
    )


def test_comparing_needs_no_torch():
    code = (
        "import sys, partwise.experiment.report, partwise.experiment.plots, partwise.experiment.compare\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert ran.stdout.strip() == "[]"


def test_scores_by_the_clock(slow, quick):
    runs = read_runs([slow, quick])
    assert by_time(runs, "auc", "pooled", 4) == [
        (10.0, [0.61, None]),
        (20.0, [0.73, None]),
    ]
    assert by_time(runs, "auc", "pooled", 22)[:3] == [(1.0, [0.5, 0.48]), (2.0, [0.5, 0.48]), (3.0, [0.5, 0.72])]
    still = [replace(run, scores={("auc", "pooled"): [run.scores["auc", "pooled"][0]]}) for run in runs]
    assert by_time(still, "auc", "pooled") == []


def test_a_long_record_is_read_in_little_memory(tmp_path):
    def peak(replies: int) -> int:
        folder = write_run(tmp_path / str(replies), SLOW, replies=[at % 7 for at in range(replies)])
        tracemalloc.start()
        run = read_run(folder)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.answers == dict.fromkeys(range(7), replies // 7)
        return most

    peak(7)  # what the first one imports
    assert peak(14_000) < 2 * peak(70)


def test_many_clients_are_called_by_their_names_without_a_search_for_each(slow):
    compared = []

    class Client(int):
        __hash__ = int.__hash__

        def __eq__(self, other):
            compared.append(other)
            return int(self) == other

    numbers = [Client(7 * at + 3) for at in range(200)]
    names = [f"user {at}" for at in range(200)]
    run = replace(read_run(slow), population={"numbers": numbers, "names": names})
    assert [run.client_name(7 * at + 3) for at in range(200)] == names
    assert len(compared) <= 4 * 200
    assert run.client_name(4) == "client 4"

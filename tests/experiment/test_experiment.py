from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from partwise.aggregators import Krum, Mean
from partwise.algorithms import FedAvg, FedSubAvg
from partwise.attacks import SignFlip
from partwise.core.errors import CheckpointError, CompositionError, DataError, DivergedError
from partwise.core.metrics import AUC, Loss
from partwise.core.model import BinaryCrossEntropy, Model
from partwise.core.population import Profile
from partwise.core.update import map_values
from partwise.core.workload import Workload
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.experiment.result import MODEL
from partwise.experiment.store import RECORD, RunStore
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain as PlainExecutor
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from partwise.workloads import LeafSynthetic
from toy_scores import Scores, Toy, WrongShape, experiment


def test_a_run_leaves_a_record_a_model_and_checkpoints(tmp_path):
    result = experiment().run(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"record.sqlite", "model.safetensors", "environment.json", "population.json", "checkpoints"} <= names
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"] == "done"
        assert [row["version"] for row in store.metrics("auc", "pooled")] == [0, 1, 2, 3, 4]
        assert len(store.replies()) == 12
        assert all(row["uplink_bytes"] > 0 and row["arrived"] > row["began"] for row in store.replies())
        assert sum(r["uplink_bytes"] for r in store.replies()) == store.metrics("auc", "pooled")[-1]["uplink_bytes"]
    assert result.value("auc", "pooled") == result.table("auc", "pooled")[-1]["value"]
    assert torch.equal(type(result)(result.folder).params["bias"], result.params["bias"])
    assert len(result.frame("loss", "pooled")) == 5


def test_two_runs_of_one_spec_are_bit_equal_and_another_seed_is_another_run(tmp_path):
    a, b = experiment().run(tmp_path / "a"), experiment().run(tmp_path / "b")
    c = experiment(seed=4).run(tmp_path / "c")
    assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    assert a.table() == b.table()
    assert not torch.equal(a.params["table.weight"], c.params["table.weight"])


def test_it_stops_at_the_target(tmp_path):
    result = experiment(evaluation=Evaluation(target=0.0)).run(tmp_path / "run")
    assert result.table("auc", "pooled")[-1]["version"] == 1
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"].startswith("target reached: auc")


def test_a_run_that_reached_its_target_is_not_trained_on_when_it_is_resumed(tmp_path):
    run = experiment(evaluation=Evaluation(target=0.0))
    first, again = run.run(tmp_path / "run"), run.run(tmp_path / "run", resume=True)
    assert first.table() == again.table()
    assert all(torch.equal(first.params[n], again.params[n]) for n in first.params)


@pytest.mark.parametrize("target", [0.0, None])
def test_killed_between_the_last_checkpoint_and_the_model(target, tmp_path):
    run, folder = experiment(evaluation=Evaluation(target=target)), tmp_path / "run"
    first = run.run(folder)
    written = (folder / MODEL).read_bytes()
    with RunStore(folder, "resume") as store:
        ended = store.meta()["status"]
        store.set_meta(status="running")
        store.commit()
    (folder / MODEL).unlink()
    again = run.run(folder, resume=True)
    assert (folder / MODEL).read_bytes() == written
    assert all(torch.equal(first.params[n], again.params[n]) for n in first.params)
    with RunStore(folder, "read") as store:
        assert store.meta()["status"] == ended


def test_a_model_that_cannot_be_written_leaves_a_run_that_can_be_resumed(tmp_path, monkeypatch):
    def refuse(params, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as during:
        during.setattr("partwise.experiment.experiment.save_file", refuse)
        with pytest.raises(CheckpointError, match=r"got: .*No space left.*resume the run"):
            experiment().run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"].startswith("CheckpointError")
    resumed = experiment().run(tmp_path / "run", resume=True)
    other = experiment().run(tmp_path / "other")
    assert all(torch.equal(resumed.params[n], other.params[n]) for n in other.params)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(tmp_path):
    experiment().run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(
        CheckpointError, match=r"the folder must exist, got none\. Give the run's present place, or begin it"
    ):
        experiment().run(tmp_path / "run", resume=True)
    with RunStore(tmp_path / "run", "read") as store:
        assert store.metrics("auc", "pooled")[-1]["version"] == 4


def test_the_last_version_is_always_evaluated(tmp_path):
    result = experiment(evaluation=Evaluation(every=3)).run(tmp_path / "run")
    assert [row["version"] for row in result.table("auc", "pooled")] == [0, 3, 4]


def test_others_can_follow_a_run_that_is_seldom_measured(tmp_path, monkeypatch):
    """Each version is on record when the next one is made, with its loss; and how many there will be."""
    monkeypatch.setattr("partwise.experiment.recorder._SHOWN_EVERY", 0.0)
    seen = []

    class Looking(Silent):
        def committed(self, version, loss, world, scores):
            with RunStore(tmp_path / "run", "read") as store:
                losses, commits = store.metrics("train_loss"), store.events("commit")
                seen.append((len(losses), len(commits), store.meta()["versions"]))

    run = experiment(evaluation=Evaluation(every=100), checkpointing=Checkpointing(every_seconds=1e9))
    run.run(tmp_path / "run", progress=Looking())
    assert seen == [(0, 0, 4), (1, 1, 4), (2, 2, 4), (3, 3, 4)]


# Bad input


class Forgetful(FedAvg):
    """Answers without its only stream, or with a loss that is none."""

    def finish(self, held, trained, index, task, own, site):
        updates, own = super().finish(held, trained, index, task, own, site)
        return ({} if site.client == 1 else updates), own


def test_a_reply_without_a_stream_is_refused_by_name_and_the_run_goes_on(tmp_path):
    plan = LocalTraining(SGD(lr=0.5), batch_size=4, steps=3)
    experiment(algorithm=Forgetful(plan), scheduler=Synchronous(cohort=6, rounds=2)).run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        refused = store.events("refused")
        assert [e["body"]["client"] for e in refused] == [1, 1]
        assert "a reply must hold the streams ['model'], got []" in refused[0]["body"]["reason"]
        assert [len(e["body"]["clients"]) for e in store.events("commit")] == [5, 5]


@dataclass(frozen=True)
class Liar:
    """An executor whose jobs of client 5, the one with most examples, claim an absurd loss."""

    loss: float

    def run(self, jobs):
        results = PlainExecutor().run(jobs)
        return [r._replace(loss=self.loss) if len(j.data) == 20 else r for j, r in zip(jobs, results, strict=True)]


@pytest.mark.parametrize(("loss", "refused"), [(math.nan, 2), (1e300, 0)])
def test_one_client_cannot_stop_a_run_by_the_loss_it_claims(loss, refused, tmp_path):
    run = experiment(scheduler=Synchronous(cohort=6, rounds=2), runtime=Simulate(Liar(loss)))
    run.run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        assert len(store.events("refused")) == refused
        assert len(store.events("commit")) == 2


def test_a_cohort_larger_than_the_population(tmp_path):
    with pytest.raises(
        ValueError, match=r"Synchronous\(cohort=9\): must be at most the population, got a population of 6"
    ):
        experiment(scheduler=Synchronous(cohort=9)).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_client_without_examples_is_lost_by_name_and_the_run_goes_on(tmp_path):
    experiment(Toy(empty_client=2), scheduler=Synchronous(cohort=6, rounds=2)).run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        lost = store.events("lost")
        assert [e["body"]["client"] for e in lost] == [2, 2]
        assert "client 2: has no examples to train on. Leave it out of the population." in lost[0]["body"]["reason"]
        assert store.meta()["status"] == "done"


def test_numbers_of_numpy_give_the_run_and_the_specification_of_pythons(tmp_path):
    def made(number, real):
        local = LocalTraining(SGD(lr=real(0.5)), batch_size=number(4), steps=number(2))
        scheduler = Synchronous(cohort=number(3), rounds=number(2))
        return Experiment(LeafSynthetic(num_clients=number(5)), FedAvg(local), scheduler, seed=number(3))

    own, other = made(int, float).run(tmp_path / "own"), made(np.int64, np.float32).run(tmp_path / "other")
    assert all(torch.equal(own.params[name], value) for name, value in other.params.items())
    assert (tmp_path / "other" / "spec.toml").read_text() == (tmp_path / "own" / "spec.toml").read_text()


def test_ids_outside_the_table_are_named_before_the_first_round(tmp_path):
    with pytest.raises(
        DataError, match=r"client 3: ids of 'table.weight' must lie in 0\.\.11, got \d+\.\.14\. Make the table"
    ):
        experiment(Toy(highest_id=14)).run(tmp_path / "run")


def test_an_update_that_is_not_finite_is_refused_by_name_and_the_run_goes_on(tmp_path):
    experiment(Toy(bad_client=4), scheduler=Synchronous(cohort=6, rounds=2)).run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        refused = store.events("refused")
        assert [e["body"]["client"] for e in refused] == [4, 4]
        assert "must be finite, got NaN or infinity" in refused[0]["body"]["reason"]
        assert [len(e["body"]["clients"]) for e in store.events("commit")] == [5, 5]


def test_a_refused_update_stops_the_run_where_that_is_asked_for(tmp_path):
    run = experiment(Toy(bad_client=4), scheduler=Synchronous(cohort=6, rounds=2), on_refused="stop")
    with pytest.warns(RuntimeWarning, match=r"got none; it ended: client 4 was refused: stream 'model' must be finite"):
        run.run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"].startswith("client 4 was refused: stream 'model' must be finite")
        assert store.events("commit") == []


def test_an_update_of_the_wrong_shape_is_refused_by_name(tmp_path):
    run = experiment(client=[WrongShape()], scheduler=Synchronous(cohort=2, rounds=1))
    with pytest.warns(
        RuntimeWarning, match=r"got none; it ended: .*; the first trouble: .*the value must have the held shape.* Mend"
    ):
        run.run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        reasons = [e["body"]["reason"] for e in store.events("refused")]
    assert len(reasons) == 2
    assert "the value must have the held shape" in reasons[0]


def test_a_diverging_run_stops_says_which_version_and_keeps_the_last_checkpoint(tmp_path):
    wild = FedAvg(LocalTraining(SGD(lr=1e12, weight_decay=0.5), batch_size=4, steps=3))
    run = experiment(algorithm=wild, scheduler=Synchronous(6, 50), checkpointing=Checkpointing(0))
    with pytest.raises(DivergedError, match=r"version \d+: "):
        run.run(tmp_path / "run")
    from partwise.experiment.checkpoint import Checkpoints

    saved = Checkpoints(tmp_path / "run" / "checkpoints").load()
    streams = saved.entries["node/-1"].streams
    assert all(torch.isfinite(t).all() for t in streams["model"].values())
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"].startswith("DivergedError")


def test_a_part_for_a_stream_that_is_not_there(tmp_path):
    with pytest.raises(
        CompositionError, match=r"FedSubAvg: has the streams \['model'\], got a client chain for \['control'\]"
    ):
        experiment(client={"control": [WrongShape()]}).run(tmp_path / "run")
    with pytest.raises(CompositionError, match=r"got an aggregator for \['logits'\]"):
        experiment(aggregator={"logits": Mean()}).run(tmp_path / "run")


def test_a_folder_that_is_in_use_and_one_with_nothing_to_resume(tmp_path):
    experiment().run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="a new run needs a new or empty folder, got one with files"):
        experiment().run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"there must be a run's record\.sqlite, got no folder"):
        experiment().run(tmp_path / "nowhere", resume=True)


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    experiment().run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="must be those the run began with, got others"):
        experiment(Toy(highest_id=7)).run(tmp_path / "run", resume=True)


def test_a_record_that_is_older_than_the_checkpoint_is_refused_and_left_as_it_is(tmp_path):
    """As one that was restored from a copy: a run that went on with it would have a hole in its record."""

    class Killed(Silent):
        def __init__(self, at):
            self.at = at

        def committed(self, version, *rest):
            if version == self.at:
                raise KeyboardInterrupt

    run, folder = experiment(checkpointing=Checkpointing(every_seconds=0)), tmp_path / "run"
    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run.run(folder, resume=at > 2, progress=Killed(at))
        shutil.copy(folder / RECORD, tmp_path / f"{at}.sqlite")
    shutil.copy(tmp_path / "2.sqlite", folder / RECORD)
    with pytest.raises(CheckpointError, match=r"must have the \d+ events of the checkpoint, got \d+\. Restore a later"):
        run.run(folder, resume=True)
    shutil.copy(tmp_path / "4.sqlite", folder / RECORD)
    found, whole = run.run(folder, resume=True).table(), run.run(tmp_path / "whole").table()
    assert found == whole


def test_a_resumed_run_goes_on_counting_refusals_in_a_row(tmp_path):
    """Client 0 answers first in the first round and last in the second: eleven refusals, a commit, nine refusals."""

    @dataclass(frozen=True)
    class Slower(Toy):
        @property
        def clients(self):
            return range(12)

        def _make(self, client, purpose):
            return super()._make(client % 6, purpose)

        def profile(self, client, now=0.0):
            return Profile(0.1 if client else (0.01 if now == 0.0 else 5.0), math.inf, math.inf, math.inf, 1.0)

    @dataclass(frozen=True)
    class Broken(FedSubAvg):
        def finish(self, held, trained, index, task, own, site):
            found, own = super().finish(held, trained, index, task, own, site)
            spoiled = {name: map_values(u, lambda value: value * math.nan) for name, u in found.items()}
            return (spoiled if site.client else found), own

    class Killed(Silent):
        version = 0

        def committed(self, version, *rest):
            self.version = version

        def noticed(self, record):
            if self.version:
                raise KeyboardInterrupt

    run = replace(
        experiment(Slower(), scheduler=Synchronous(cohort=12, rounds=6)),
        algorithm=Broken("count"),
        checkpointing=Checkpointing(every_seconds=0),
    )
    said = "version 1: the last 20 updates were all refused"
    with pytest.raises(DivergedError, match=said):
        run.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run.run(tmp_path / "killed", progress=Killed())
    with pytest.raises(DivergedError, match=said):
        run.run(tmp_path / "killed", resume=True)


def test_a_checkpoint_that_is_passed_over_is_said_and_kept(tmp_path):
    class Watching(Silent):
        def __init__(self, at=0):
            self.at, self.noted = at, []

        def committed(self, version, *rest):
            if version == self.at:
                raise KeyboardInterrupt

        def noticed(self, record):
            self.noted.append((record.kind, record.fields["reason"]))

    run, folder = experiment(checkpointing=Checkpointing(every_seconds=0)), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run.run(folder, progress=Watching(4))
    max((folder / "checkpoints" / "manifests").iterdir()).write_bytes(b"")
    watching = Watching()
    run.run(folder, resume=True, progress=watching)
    ((kind, reason),) = watching.noted
    assert kind == "passed over"
    assert reason.startswith("checkpoint 3 is not whole: ")
    assert reason.endswith("Going back to checkpoint 2.")
    with RunStore(folder, "read") as store:
        assert store.meta()["passed_over"] == [reason]


@pytest.mark.parametrize("damaged", [b"", b'{"clients": 4, "na', b"\xff\xfe"])
def test_a_run_whose_description_of_clients_is_damaged_says_so(damaged, tmp_path):
    experiment().run(tmp_path / "run")
    (tmp_path / "run" / "population.json").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"population\.json: must be the run's clients as it began, got a file"):
        experiment().run(tmp_path / "run", resume=True)


def test_a_finished_run_can_be_resumed_and_nothing_changes(tmp_path):
    first = experiment().run(tmp_path / "run")
    again = experiment().run(tmp_path / "run", resume=True)
    assert all(torch.equal(first.params[n], again.params[n]) for n in first.params)
    assert first.table() == again.table()


class Interrupts(Silent):
    """Presses Ctrl-C after the second version."""

    def committed(self, version, loss, world, scores):
        if version == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_version_saves_and_can_be_resumed_to_the_same_bits(tmp_path):
    whole = experiment().run(tmp_path / "whole")
    part = experiment().run(tmp_path / "part", progress=Interrupts())
    assert part.table("auc", "pooled")[-1]["version"] < 4
    with RunStore(tmp_path / "part", "read") as store:
        assert store.meta()["status"] == "interrupted"
    rest = experiment().run(tmp_path / "part", resume=True)
    assert all(torch.equal(whole.params[n], rest.params[n]) for n in whole.params)
    assert whole.table() == rest.table()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_evaluation_and_checkpointing_refuse_wrong_values():
    with pytest.raises(ValueError, match=r"Evaluation\(every=0\): must be at least 1"):
        Evaluation(every=0)
    with pytest.raises(ValueError, match=r"Checkpointing\(every_seconds=-1\): must be at least 0"):
        Checkpointing(-1)
    with pytest.raises(ValueError, match=r"Checkpointing\(every_seconds=nan\): must be at least 0"):
        Checkpointing(math.nan)  # would never be due
    with pytest.raises(ValueError, match=r"Evaluation\(target=nan\): must be a number, got nan"):
        Evaluation(target=math.nan)
    with pytest.raises(ValueError, match=r"Checkpointing\(keep=0\): must be at least 1"):
        Checkpointing(keep=0)


def test_the_environment_says_versions_and_machine(tmp_path):
    experiment().run(tmp_path / "run")
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["torch"] == torch.__version__
    assert {"python", "numpy", "cores", "platform"} <= found.keys()


def test_a_rule_that_gets_too_few_updates_skips_the_round_and_stops_after_three(tmp_path):
    run = experiment(aggregator=Krum(f=1), scheduler=Synchronous(cohort=3, rounds=9))
    with pytest.raises(
        CompositionError, match=r"3 rounds in a row committed nothing.*Krum\(f=1\): needs at least 2f\+3 = 5"
    ):
        run.run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        assert len(store.events("skipped")) == 3
        assert store.events("commit") == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"aggregator": Krum},
            r"\(aggregator=Krum\): must be an Aggregator or .*, got a class\. Make one: Krum\(",
        ),
        (
            {"hostile": SignFlip()},
            r"must be a Hostile or None, got a SignFlip\. Wrap it: Hostile\(attack=Sign",
        ),
        ({"client": Clip(1.0)}, r"must be a tuple of Transform or .*, got a Clip\. Write \(Clip\(max_norm=1\.0\),\)\."),
        ({"workload": "MNIST"}, r"must be a Workload or a WorkloadSource, got a str\. Give the part itself, MNIST\("),
        ({"evaluation": 5}, r"must be an Evaluation, got an int\. Wrap it: Evaluation\(every=5\)\."),
        ({"seed": "1"}, r"Experiment\(seed='1'\): must be a whole number, got a str\."),
    ],
)
def test_what_is_of_another_kind_is_refused_at_once(wrong, says):
    with pytest.raises(TypeError, match=says):
        Experiment(**{"workload": LeafSynthetic(), "algorithm": FedAvg(), **wrong})
    for threads in (-1, 10**6):
        with pytest.raises(
            ValueError, match=rf"Experiment\(threads={threads}\): must be in 0\.\.1024, got {threads}\."
        ):
            Experiment(LeafSynthetic(), FedAvg(), threads=threads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("idz",), "tables": {}}, r"Model\(inputs=\('idz',\)\): must name a column, got 'idz'\. .*'ids'"),
        ({"tables": {"table.weight": ("id",)}}, "must name a column, got 'id'"),
        ({"loss": BinaryCrossEntropy("liked")}, "must name a column, got 'liked'"),
    ],
)
def test_a_column_that_the_model_reads_and_no_client_has_is_refused_when_built(changes, message):
    parts = {"loss": BinaryCrossEntropy(), "inputs": ("ids",), "tables": {"table.weight": ("ids",)}, **changes}
    workload = Workload(Model(Scores, **parts), Toy(), (AUC(), Loss(BinaryCrossEntropy())))
    with pytest.raises(DataError, match=message):
        experiment(workload=workload).build()


@dataclass(frozen=True)
class Unreturned:
    """A description of a workload, whose author forgot to return it."""

    def build(self, seed):
        Workload(Model(Scores, BinaryCrossEntropy(), inputs=("ids",)), Toy(), (AUC(),))


def test_a_description_that_builds_no_workload_is_refused_with_what_to_return():
    with pytest.raises(
        CompositionError, match=r"Unreturned\(\)\): its build must return a Workload, got None\. Return Workload\("
    ):
        experiment(workload=Unreturned()).build()
    with pytest.raises(CompositionError, match=r"its build must return a Workload, got a Scores\."):
        experiment(workload=Model(Scores, BinaryCrossEntropy(), inputs=("ids",))).build()

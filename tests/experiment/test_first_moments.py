"""What a run needs of its caller and its parts before the first version, and what it says if there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from partwise.algorithms import FedAvg, LocalOnly
from partwise.core.errors import CheckpointError, DataError
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.log import LogWriter
from partwise.experiment.recorder import Silent
from partwise.experiment.result import MODEL
from partwise.experiment.store import RECORD
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Plain as PlainExecutor
from partwise.runtimes.executors import Pool, Stacked
from partwise.schedulers import Synchronous
from toy_scores import Toy, WrongShape, experiment


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("executor", [PlainExecutor(autograd=True), Stacked(), Pool(workers=1)], ids=repr)
def test_a_caller_who_has_gradients_switched_off_trains_all_the_same(off, executor, tmp_path):
    made = experiment(runtime=Simulate(executor))
    expected = made.run(tmp_path / "on").params
    with off():
        found = made.run(tmp_path / "off").params
        assert not torch.is_grad_enabled()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(torch.equal(found[name], value) for name, value in experiment().build()[1].model.init(3).items())


class Watches(Silent):
    """Somebody."""


def test_a_run_that_made_no_version_says_so_where_nobody_watches(tmp_path, recwarn):
    run = experiment(client=[WrongShape()], scheduler=Synchronous(cohort=2, rounds=1))
    run.run(tmp_path / "watched", progress=Watches())
    experiment(scheduler=Synchronous(cohort=2, rounds=1)).run(tmp_path / "fine")
    assert not [w for w in recwarn if w.category is RuntimeWarning]


def test_a_part_that_no_client_can_do_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"LocalOnly\(names=\('hed',\)\): must name parameters of the model"):
        experiment(algorithm=LocalOnly(FedAvg(), names=("hed",))).run(root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_scope_that_no_score_has_is_refused():
    with pytest.raises(ValueError, match=r"Evaluation\(scope='foo'\): must be one of central, pooled, .* Leave it out"):
        Evaluation(target=0.9, scope="foo")


class Untested(Toy):
    """Clients without test examples."""

    def test_data(self, client):
        return None


@pytest.mark.parametrize(
    ("evaluation", "population", "remedy"),
    [
        (Evaluation(target=0.0, scope="central"), None, "Give the population a central test set, or leave the"),
        (Evaluation(target=0.0, per_client=False), None, "a central test set or its clients test examples, or"),
        (
            Evaluation(target=0.0),
            Untested(),
            "a central test set or its clients test examples, or leave the target out",
        ),
        (
            Evaluation(target=0.0, scope="worst"),
            Untested(),
            "a central test set or its clients test examples, or leave",
        ),
    ],
)
def test_a_target_that_is_never_measured_is_refused(evaluation, population, remedy, tmp_path):
    made = experiment(population, evaluation=evaluation)
    said = rf"Evaluation\(target=0.0, .*\): must have test examples .* got none\. .*{remedy}"
    with pytest.raises(DataError, match=said):
        made.run(root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    replace(made, evaluation=replace(evaluation, target=None)).run(tmp_path / "run")


def test_a_target_over_clients_who_are_not_evaluated_is_refused():
    said = r"Evaluation\(target=0.9, scope='mean', per_client=False\): must measure what the target looks at"
    with pytest.raises(ValueError, match=said):
        Evaluation(target=0.9, scope="mean", per_client=False)
    assert Evaluation(scope="mean", per_client=False).target is None


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"needs a folder that can be made, got: Not a directory\. Name another"):
        experiment().run(tmp_path / "file" / "run")


def test_who_may_read_the_record_may_read_the_model(tmp_path):
    experiment(scheduler=Synchronous(cohort=2, rounds=1)).run(tmp_path / "run")
    modes = {(tmp_path / "run" / name).stat().st_mode & 0o777 for name in (MODEL, RECORD)}
    assert len(modes) == 1


def test_a_log_that_cannot_be_cut_is_a_sentence(tmp_path, monkeypatch):
    def refuse(path, size):
        raise PermissionError(13, "Permission denied")

    writer = LogWriter(tmp_path)
    writer.add(0.0, 0, 0)
    writer.flush()
    monkeypatch.setattr("os.truncate", refuse)
    with pytest.raises(CheckpointError, match=r"log\.bin: needs a folder it may write to, got: Permission denied\."):
        writer.truncate(0)

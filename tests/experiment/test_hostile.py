"""A run with hostile clients and an observer: what is recorded and shown, and that it is resumed to the last bit."""

import os
import signal

import pytest
import torch

from partwise.aggregators import Mean, Watch, Zeno
from partwise.algorithms import FedAvg
from partwise.attacks import Hostile, SignFlip
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.experiment.report import write_report
from partwise.experiment.runs import read_run
from partwise.experiment.store import RunStore
from partwise.experiment.trusted import Trusted
from partwise.local import SGD, LocalTraining
from partwise.observers import MUDHoG
from partwise.populations.arrays import ArrayPopulation
from partwise.schedulers import Synchronous
from toy_cli import call


def images(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=rng)
    x = 0.1 * torch.randn(n, 1, 6, 6, generator=rng)
    x[torch.arange(n), 0, y] += 1.0
    return {"x": x, "y": y}


def experiment(rounds=5, **more):
    population = ArrayPopulation(images(160, 1), torch.arange(0, 161, 20), central=Examples(images(80, 2)))
    model = Model(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)), CrossEntropy())
    parts = {
        "aggregator": Watch(MUDHoG(), Mean("holders"), exclude=True),
        "hostile": Hostile(SignFlip(), clients=(2, 6)),
    }
    return Experiment(
        Workload(model, population, (Accuracy(),)),
        FedAvg(LocalTraining(SGD(0.2), batch_size=10)),
        Synchronous(cohort=8, rounds=rounds),
        checkpointing=Checkpointing(every_seconds=0.0),
        **{**parts, **more},
    )


def test_record_and_report_name_whom_the_server_suspected(tmp_path):
    experiment().run(tmp_path / "run")
    with RunStore(tmp_path / "run", "read") as store:
        told = [event["body"] for event in store.events("told")]
        assert store.meta()["hostile_clients"] == [2, 6]
    assert [body["version"] for body in told] == [2, 3, 4]  # from the third round on
    assert all({s["client"] for s in body["suspects"] if s["kind"] == "sign flip"} == {2, 6} for body in told)
    assert {2, 6} <= set(told[-1]["excluded"])
    run = read_run(tmp_path / "run")
    assert {t.client for t in run.troubles if (t.kind, t.stage) == ("suspected", "sign flip")} == {2, 6}
    shown = call("show", tmp_path / "run")[0]
    assert "clients suspected: " in shown
    assert "client 2: sign flip, 3 rounds from version 2 on: cosine -" in shown
    write_report([tmp_path / "run"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert " clients suspected" in page
    assert "suspected in sign flip" in page


class Stops(Silent):
    """Presses Ctrl-C after the third version."""

    def committed(self, version, loss, world, scores):
        if version == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = experiment().run(tmp_path / "whole")
    experiment().run(tmp_path / "part", progress=Stops())
    assert read_run(tmp_path / "part").meta["status"] == "interrupted"
    resumed = experiment().run(tmp_path / "part", resume=True)
    assert all(torch.equal(whole.params[name], v) for name, v in resumed.params.items())
    told = []
    for run in (whole, resumed):
        with RunStore(run.folder, "read") as store:
            told.append([event["body"] for event in store.events("told")])
    assert told[0] == told[1]
    assert len(told[0]) == 3


def test_trusted_examples_are_not_tested_on():
    star, workload = experiment(aggregator=Zeno(f=2), trusted=Trusted(30)).build()
    assert len(workload.population.central_test()) == 50
    assert len(star.trusted) == 30
    every = torch.cat([star.trusted.columns()["x"], workload.population.central_test().columns()["x"]]).flatten(1)
    true = images(80, 2)["x"].flatten(1)
    assert torch.equal(every.sort(0).values, true.sort(0).values)
    with pytest.raises(
        CompositionError, match=r"Trusted\(examples=80\): takes examples from a larger central test set"
    ):
        experiment(trusted=Trusted(80)).build()
    with pytest.raises(ValueError, match=r"Trusted\(examples=0\): must be at least 1, got 0\."):
        Trusted(0)

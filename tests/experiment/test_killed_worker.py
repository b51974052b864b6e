"""A worker of the pool that is killed in the middle of a job: its client is lost, by name, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from partwise.core.algorithm import Algorithm
from partwise.core.plan import Executor
from partwise.experiment.experiment import Experiment
from partwise.experiment.report import write_report
from partwise.experiment.result import Result
from partwise.experiment.runs import read_run
from partwise.experiment.store import RunStore
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Auto, Plain, Pool
from partwise.runtimes.threads import torch_threads
from partwise.schedulers import Synchronous
from partwise.workloads import LeafSynthetic
from toy_cli import call

TESTS = os.getpid()
CLIENT, VERSION = 3, 1


@dataclass(frozen=True)
class Fatal:
    """A gradient term that ends its process after the first step; in the process of the tests it raises."""

    def __call__(self, params: Mapping[str, Tensor], grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if step:
            if os.getpid() == TESTS:
                raise RuntimeError("the same end, told from inside")
            os.kill(os.getpid(), signal.SIGKILL)
        return grads


@dataclass(frozen=True)
class Perilous(Algorithm):
    """Federated averaging in which one client does not survive its training at one version."""

    local: LocalTraining = field(default_factory=lambda: LocalTraining(SGD(0.1), batch_size=16, steps=4))

    def plan(self, held: Any, index: Any, task: Any, own: Any, site: Any) -> Any:
        is_fatal = (site.client, task.version) == (CLIENT, VERSION)
        return self.local.plan(site, task, gradient=(Fatal(),) if is_fatal else ())


def run(folder: Path, executor: Executor) -> Mapping[str, Tensor]:
    """The final parameters of four rounds in which everybody is asked."""
    described = Experiment(
        LeafSynthetic(num_clients=6, num_features=5, classes=3, max_examples=60),
        Perilous(),
        Synchronous(cohort=6, rounds=4),
        seed=2,
        runtime=Simulate(executor),
    )
    return described.run(folder).params


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def killed(one_thread, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "run"
    before = set(multiprocessing.active_children())
    run(folder, Pool(workers=2))
    assert set(multiprocessing.active_children()) == before
    return folder


def test_record_names_the_client_and_the_run_goes_on(killed):
    with RunStore(killed, "read") as store:
        (lost,) = [event["body"] for event in store.events("lost")]
        commits = [event["body"]["clients"] for event in store.events("commit")]
        answered = [row["client"] for row in store.replies()]
        assert store.meta()["status"] == "done"
    assert (lost["client"], lost["version"], lost["stage"]) == (CLIENT, VERSION, "train")
    assert lost["reason"] in {
        f"ProtocolError: Pool(workers=2): worker {n} must live until its job is done, but was killed by SIGKILL. "
        "Is there enough memory?"
        for n in (0, 1)
    }
    everybody = [0, 1, 2, 3, 4, 5]
    assert [sorted(clients) for clients in commits] == [everybody, [0, 1, 2, 4, 5], everybody, everybody]
    assert answered.count(CLIENT) == 3


def test_result_is_that_of_a_client_that_says_that_it_failed(killed, tmp_path):
    """To the last bit: the jobs that the killed worker was given besides are trained by another one."""
    expected = run(tmp_path / "raised", Plain())
    found = Result(killed).params
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with RunStore(tmp_path / "raised", "read") as store:
        (lost,) = store.events("lost")
    assert lost["body"]["reason"] == "RuntimeError: the same end, told from inside"


def test_run_is_shown_and_reported_with_the_name(killed, tmp_path):
    (trouble,) = read_run(killed).troubles
    assert (trouble.kind, trouble.client, trouble.version, trouble.stage) == ("lost", CLIENT, VERSION, "train")
    name = read_run(killed).client_name(CLIENT)
    out, _ = call("show", killed)
    words = " ".join(out.split())
    assert f"clients lost or refused: 1 {name} lost at version 1: ProtocolError: Pool(workers=2): worker" in words
    page = write_report([killed], out=tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("lost in train", name, "killed by SIGKILL", "1 lost, 0 refused."):
        assert text in page


def test_pool_that_auto_chose_loses_a_client_in_the_same_way(killed, tmp_path):
    """The trial takes jobs of the first version, in which nobody dies."""
    found = run(tmp_path / "auto", Auto([Pool(workers=2)], trial_seconds=0.01))
    assert all(torch.equal(found[name], value) for name, value in Result(killed).params.items())
    with RunStore(tmp_path / "auto", "read") as store:
        assert [event["body"]["client"] for event in store.events("lost")] == [CLIENT]
        assert store.meta()["status"] == "done"

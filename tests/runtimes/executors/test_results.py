"""Executors that give what is no result are named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.errors import CompositionError
from partwise.core.metrics import Accuracy
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.simulate import Simulate
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from toy_federation import model, population

WORKLOAD = Workload(model(), population(), (Accuracy(),))


@dataclass(frozen=True)
class Faulty:
    """`Plain` with a fault."""

    fault: str

    def run(self, jobs):
        results = Plain().run(jobs)
        if self.fault == "short":
            return results[1:]
        if self.fault == "forgets":
            return [result._replace(change=dict(list(result.change.items())[1:])) for result in results]
        if self.fault == "changes":
            return [result.change for result in results]
        if self.fault == "tensors":
            return [result._replace(loss=torch.tensor(result.loss)) for result in results]
        return None


@pytest.mark.parametrize("client", [(), (Clip(1.0),)], ids=["summed", "each"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("short", r"must give one result for each of \d+ jobs, got \d+\."),
        ("none", r"must give one result for each of \d+ jobs, got a NoneType\."),
        ("changes", "must give a Trained with numbers, or an exception, for each job, got a dict"),
        ("tensors", "must give a Trained with numbers, .* got a loss that is a Tensor"),
        ("forgets", "must give the change of all that the job began with"),
    ],
)
def test_what_is_no_result_is_named(fault, words, client, tmp_path):
    runtime = Simulate(Faulty(fault))
    experiment = Experiment(WORKLOAD, FedAvg(), Synchronous(4, 2), client=client, runtime=runtime)
    with pytest.raises(CompositionError, match=rf"Faulty\(fault='{fault}'\): {words}"):
        experiment.run(tmp_path / "run")

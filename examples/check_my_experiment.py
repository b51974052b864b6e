"""An algorithm and a scheduler of one's own: their contracts, and a run with both."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from my_algorithm import PerStep
from my_scheduler import FirstToAnswer

import partwise as pw
from partwise.testing import check

check(PerStep())
check(FirstToAnswer(cohort=3, replies=2, rounds=4))

rng = torch.Generator().manual_seed(1)
x, client = torch.randn(500, 8, generator=rng), torch.randint(12, (500,), generator=rng)
columns = {"x": x, "y": (x.sum(1) > 0).long()}
population = pw.from_arrays(columns, client=client.tolist(), test_share=0.2, profiles=pw.LogNormal())
model = pw.Model(lambda: nn.Linear(8, 2), pw.CrossEntropy())
workload = pw.Workload(model, population, metrics=(pw.Accuracy(),))
experiment = pw.Experiment(workload, PerStep(local=pw.LocalTraining(pw.SGD(0.1))), FirstToAnswer(6, 4, rounds=5))
with tempfile.TemporaryDirectory() as folder:
    result = experiment.run(Path(folder) / "run")
    print(f"accuracy {result.value('accuracy', 'pooled'):.3f}; PerStep and FirstToAnswer keep their contracts")
